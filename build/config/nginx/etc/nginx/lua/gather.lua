-- Lets a call go on when all that its client sent with its header has been read.
--
-- nginx opens a call with its header, although most often the message is in the same packet, and what it then writes in
-- two pieces wakes the replica twice. And of an attacker who resets each call at once (CVE-2023-44487) it would make as
-- many connections to replicas. So a call waits for the end of the round of the event loop that has brought its header:
-- its message is there by then, or its end.

local semaphore = require("ngx.semaphore")

local _M = {}

-- A timer that has not run by then never will.
local LATE_SECONDS = 0.1

local calls = semaphore.new(0)
-- When a timer was set that ends the round for those that wait.
local ending_since

local function end_round()
    ending_since = nil
    -- Below 0 by the number of calls that wait; those that their client has reset have left.
    local waiting = -calls:count()
    if waiting > 0 then
        calls:post(waiting)
    end
end

-- For access_by_lua. (ngx.sleep(0) would do, but for the warning that it logs each time.)
function _M.gather()
    local now = ngx.now()
    if not ending_since or now > ending_since + LATE_SECONDS then
        -- nginx looks at its timers when it has handled all that a round has brought.
        if not ngx.timer.at(0, end_round) then
            return
        end
        ending_since = now
    end
    calls:wait(LATE_SECONDS)
end

return _M
