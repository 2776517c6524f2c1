-- Returns a worker's unused memory to the system.
--
-- glibc keeps free memory between pieces in use: after clients that let thousands of answers pile up, two workers
-- stayed at 260 MB for good. malloc_trim(3) returns all whole pages and takes about as long as a few calls. musl does
-- not have this function and does not need it.

local ffi = require("ffi")

local _M = {}

local EVERY_SECONDS = 20

ffi.cdef("int malloc_trim(size_t pad);")

local function trim(premature)
    if not premature then
        ffi.C.malloc_trim(0)
    end
end

function _M.init_worker()
    local known = pcall(function() return ffi.C.malloc_trim end)
    if known then
        ngx.timer.every(EVERY_SECONDS, trim)
    end
end

return _M
