-- Ejects a replica for a second from all workers after a failed connection. Longer ejections are the control plane's:
-- they are in the replica's state.

local clock = require("clock")

local _M = {}

local SECONDS = 1
-- The shared dictionary removes an entry after this time of the wall clock. Correctness does not depend on it.
local KEEP_SECONDS = 60

local ejected = ngx.shared.ejected
-- The number of changes: a worker reads the whole dictionary only when it differs.
local VERSION = "version"
-- By a replica's key, the time of its ejection by clock.now().
local times, version = {}, nil

-- Takes over the changes of other workers.
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
        local name = replica.key:gsub("\t", " ")
        ngx.log(ngx.WARN, "ejected replica=", name, " seconds=", SECONDS, " reason=", reason)
    end
    ejected:set(replica.key, now, KEEP_SECONDS)
    ejected:incr(VERSION, 1, 0)
    times[replica.key] = now
end

-- An ejection ends after SECONDS, or when the control plane has since found that the replica serves. So it does not
-- apply to another replica that gets the address.
function _M.is_ejected(replica, now)
    local time = times[replica.key]
    return time ~= nil and now < time + SECONDS and replica.since < time
end

return _M
