-- Which peers get no call for now, and why; shared by all workers. A call that finds nobody sets its peer aside, and
-- so does the keeper's probe, which also brings it back.

local _M = {}

local set_aside = ngx.shared.set_aside
-- Nobody is there, or somebody else. A peer that names its health service gets no call until it has said again that
-- it is SERVING, even if it is the only one: another service may have its address by now. One that names none can't
-- be told from another, so it is tried when there is no other.
local GONE = { refused = true, foreign = true }

-- Why a peer is set aside (see probe.ask); nil when it is in service.
function _M.reason(peer)
    return set_aside:get(peer.key)
end

function _M.is_gone(peer)
    return peer.health ~= "" and GONE[set_aside:get(peer.key)] or false
end

function _M.put(peer, reason)
    if set_aside:get(peer.key) ~= reason then
        set_aside:set(peer.key, reason)
        ngx.log(ngx.WARN, "set aside peer=", peer.key, " reason=", reason)
    end
end

function _M.bring_back(peer)
    if set_aside:get(peer.key) then
        set_aside:delete(peer.key)
        ngx.log(ngx.NOTICE, "back in service peer=", peer.key)
    end
end

-- A peer that has left the list: the next one with its name starts in service.
function _M.forget(key)
    set_aside:delete(key)
end

return _M
