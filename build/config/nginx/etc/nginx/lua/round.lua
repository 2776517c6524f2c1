-- Work for the end of a round of nginx's event loop.

local _M = {}

-- A timer that has not run by then never will.
_M.LATE_SECONDS = 0.1

-- Makes a function that sees to it that the work is done at the end of this round, once, however often it is called in
-- it; false if that can't be had, as in a worker that is about to end.
function _M.at_end(work)
    local since
    local function run()
        since = nil
        work()
    end
    return function()
        local now = ngx.now()
        if not since or now > since + _M.LATE_SECONDS then
            -- nginx looks at its timers when it has handled all that a round has brought.
            if not ngx.timer.at(0, run) then
                return false
            end
            since = now
        end
        return true
    end
end

return _M
