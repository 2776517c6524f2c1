-- The monotonic clock in seconds (clock_gettime(2), CLOCK_MONOTONIC). All programs of a machine share it, so the
-- control plane's times can be compared with it. ngx.now() is the wall clock.

local ffi = require("ffi")

local _M = {}

ffi.cdef([[
    typedef struct { long seconds; long nanoseconds; } lb_time_t;
    int clock_gettime(int clock, lb_time_t *time);
]])
local CLOCK_MONOTONIC = 1
local time = ffi.new("lb_time_t")

function _M.now()
    ffi.C.clock_gettime(CLOCK_MONOTONIC, time)
    return tonumber(time.seconds) + tonumber(time.nanoseconds) / 1e9
end

return _M
