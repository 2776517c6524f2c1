-- Replicas that could not be connected to: no worker tries them for a moment. This is nginx's own and short; what is
-- known of a replica's health is in its state, which the control plane decides.

local clock = require("clock")

local _M = {}

local SECONDS = 1
-- How long the shared dictionary keeps an entry at most, by the wall clock. Correctness does not depend on it.
local KEEP_SECONDS = 60

local ejected = ngx.shared.ejected
-- Counts the changes: a worker looks into the shared dictionary only when there was one.
local VERSION = "version"
-- By key of a replica, when it was ejected, in seconds of clock.now().
local times, version = {}, nil

-- Takes over what other workers have changed.
function _M.refresh()
    local latest = ejected:get(VERSION)
    if latest == version then
        return
    end
    version = latest
    times = {}
    for _, key in ipairs(ejected:get_keys(0)) do
        times[key] = key ~= VERSION and ejected:get(key) or nil
    end
end

function _M.eject(replica, reason)
    local now = clock.now()
    if not _M.is_ejected(replica, now) then
        ngx.log(ngx.WARN, "ejected replica=", replica.key, " seconds=", SECONDS, " reason=", reason)
    end
    ejected:set(replica.key, now, KEEP_SECONDS)
    ejected:incr(VERSION, 1, 0)
    times[replica.key] = now
end

-- An ejection ends after SECONDS, and when the control plane has found since that the replica serves. So it does not
-- hold for another replica that gets the address.
function _M.is_ejected(replica, now)
    local time = times[replica.key]
    return time ~= nil and now < time + SECONDS and replica.since < time
end

return _M
