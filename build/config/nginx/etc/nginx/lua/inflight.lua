-- Counts the calls in flight of one worker: `open` has all of them, count() those that began in the last 2 to 4
-- seconds. A longer call is a stream, which says nothing about a replica's load.

local _M = {}

local SECONDS = 2
local period = 0

-- Sets the counters' time to `now` of clock.now(), once in each event-loop iteration.
function _M.advance(now)
    period = math.floor(now / SECONDS)
end

function _M.new()
    return { open = 0, period = 0, current = 0, before = 0 }
end

local function turn(counter)
    if period ~= counter.period then
        counter.before = period == counter.period + 1 and counter.current or 0
        counter.current = 0
        counter.period = period
    end
end

function _M.count(counter)
    turn(counter)
    return counter.current + counter.before
end

-- Counts a call that begins; leave() takes the result.
function _M.enter(counter)
    turn(counter)
    counter.open = counter.open + 1
    counter.current = counter.current + 1
    return period
end

function _M.leave(counter, entered)
    turn(counter)
    counter.open = counter.open - 1
    if entered == counter.period then
        counter.current = counter.current - 1
    elseif entered == counter.period - 1 then
        counter.before = counter.before - 1
    end
end

return _M
