-- Lets a call go on when all that its client sent with its header has been read.
--
-- nginx opens a call with its header, although most often the message is in the same packet, and what it then writes in
-- two pieces wakes the replica twice. And of an attacker who resets each call at once (CVE-2023-44487) it would make as
-- many connections to replicas. So a call waits for the end of the round of the event loop that has brought its header:
-- its message is there by then, or its end.

local round = require("round")
local semaphore = require("ngx.semaphore")

local _M = {}

local calls = semaphore.new(0)

local let_go = round.at_end(function()
    -- Below 0 by the number of calls that wait; those that their client has reset have left.
    local waiting = -calls:count()
    if waiting > 0 then
        calls:post(waiting)
    end
end)

-- For access_by_lua. (ngx.sleep(0) would do, but for the warning that it logs each time.)
function _M.gather()
    if let_go() then
        calls:wait(round.LATE_SECONDS)
    end
end

return _M
