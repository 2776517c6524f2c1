-- Which peers get no call for now, and why; shared by all workers. A call that finds nobody sets its peer aside, and
-- so does the keeper's probe, which also brings it back.

local _M = {}

local set_aside = ngx.shared.set_aside
-- Counts the changes, so that a worker looks into the shared dictionary only when there was one.
local VERSION = "version"
local reasons, version = {}, nil
-- Nobody is there, or somebody else. A peer that names its health service gets no call until it has said again that
-- it is SERVING, even if it is the only one: another service may have its address by now. One that names none can't
-- be told from another, so it is tried when there is no other.
local GONE = { refused = true, foreign = true }

-- Takes over what other workers have changed.
function _M.refresh()
    local now = set_aside:get(VERSION)
    if now == version then
        return
    end
    version = now
    reasons = {}
    for _, key in ipairs(set_aside:get_keys(0)) do
        reasons[key] = key ~= VERSION and set_aside:get(key) or nil
    end
end

local function change(key, reason)
    set_aside:set(key, reason)
    set_aside:incr(VERSION, 1, 0)
    reasons[key] = reason
end

-- Why a peer is set aside (see probe.ask); nil when it is in service.
function _M.reason(peer)
    return reasons[peer.key]
end

function _M.is_gone(peer)
    return peer.health ~= "" and GONE[reasons[peer.key]] or false
end

function _M.put(peer, reason)
    if set_aside:get(peer.key) ~= reason then
        change(peer.key, reason)
        ngx.log(ngx.WARN, "set aside peer=", peer.key, " reason=", reason)
    end
end

-- A peer that has left the list: the next one with its name starts in service. True when it was set aside.
function _M.forget(key)
    if not set_aside:get(key) then
        return false
    end
    change(key, nil)
    return true
end

function _M.bring_back(peer)
    if _M.forget(peer.key) then
        ngx.log(ngx.NOTICE, "back in service peer=", peer.key)
    end
end

return _M
