-- Finds the gRPC status of a call that ends without one of its replica.

local ffi = require("ffi")
local get_request = require("resty.core.base").get_request
require("tcp") -- for lb_request_t

local _M = {}

-- A client's deadline begins before its call reaches the balancer, and the client cancels the call at its end.
local EARLY_SECONDS = 0.05
-- How much later than the client a replica ends a call; and the largest number of grpc-timeout.
local LATER_MILLISECONDS, MOST = 100, 99999999
local UNITS = { H = 3600, M = 60, S = 1, m = 1e-3, u = 1e-6, n = 1e-9 }

local CANCELLED, DEADLINE_EXCEEDED, PERMISSION_DENIED, RESOURCE_EXHAUSTED, INTERNAL, UNAVAILABLE = 1, 4, 7, 8, 13, 14
-- By HTTP/2's error code; all others are INTERNAL ("gRPC over HTTP2", Errors).
local REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM, INADEQUATE_SECURITY = 7, 8, 11, 12
local STATUS = {
    [REFUSED_STREAM] = UNAVAILABLE, [CANCEL] = CANCELLED, [ENHANCE_YOUR_CALM] = RESOURCE_EXHAUSTED,
    [INADEQUATE_SECURITY] = PERMISSION_DENIED,
}
local HEADERS, RST_STREAM, GOAWAY, CONTINUATION, LAST_CODE = 1, 3, 7, 9, 0xd

-- The first members of ngx_http_grpc_ctx_t, as the compiler lays them out; the same in nginx 1.22.0 to 1.31.4. `type`,
-- `stream_id` and `error` are those of the frame that nginx has read last, `error` of RST_STREAM or GOAWAY.
ffi.cdef([[
    typedef struct { uintptr_t ctx_index; } lb_module_t; /* the beginning of ngx_module_t */
    extern lb_module_t ngx_http_grpc_module;
    typedef struct {
        int state; uintptr_t frame_state, fragment_state;
        void *input, *output, *free, *busy, *connection;
        uintptr_t id, pings, settings;
        int64_t length; intptr_t send_window; size_t recv_window, rest;
        uintptr_t stream_id; uint8_t type, flags, padding;
        uintptr_t error;
    } lb_grpc_call_t;
]])
local request_type, contexts_type = ffi.typeof("lb_request_t *"), ffi.typeof("void **")
local call_type = ffi.typeof("lb_grpc_call_t *")
-- nginx exports its symbols for dynamic modules; a build without them may not.
local known, index = pcall(function() return tonumber(ffi.C.ngx_http_grpc_module.ctx_index) end)

-- For balancer_by_lua: returns the context of this call for of(); it is valid as long as the request.
function _M.context()
    if not known then
        return nil
    end
    local request = ffi.cast(request_type, get_request())
    return tonumber(ffi.cast("uintptr_t", ffi.cast(contexts_type, request.ctx)[index]))
end

-- The seconds of a grpc-timeout; nil for text of another form.
local function seconds_of(timeout)
    local amount, unit = timeout:match("^(%d+)([HMSmun])$")
    return amount and amount * UNITS[unit]
end

-- Whether the deadline of a call has passed after `seconds`.
function _M.deadline_passed(seconds)
    local timeout = seconds_of(ngx.var.http_grpc_timeout or "")
    return timeout ~= nil and seconds >= timeout - EARLY_SECONDS
end

-- Returns the grpc-timeout that a replica gets for a caller's. Client and server both end a call at its deadline, the
-- client with a status. Where a server is first, in the middle of an answer, nginx can only make that INTERNAL.
function _M.timeout(given)
    local seconds = seconds_of(given)
    local milliseconds = seconds and math.ceil(seconds * 1e3) + LATER_MILLISECONDS
    if not milliseconds or milliseconds > MOST then
        return given
    end
    return ("%dm"):format(milliseconds)
end

-- Returns the status, as a number, and the message of a call that a replica has received, at least in part, and has not
-- answered after `seconds`.
function _M.of(context, seconds)
    local call = context and context ~= 0 and ffi.cast(call_type, context)
    if not call or call.id % 2 == 0 or call.error > LAST_CODE then
        return INTERNAL, "the replica did not answer"
    end
    local kind, of_call = call.type, call.stream_id == call.id
    if kind == GOAWAY and call.stream_id < call.id then
        return UNAVAILABLE, "the replica has not taken the call: it is ending"
    elseif of_call and (kind == HEADERS or kind == CONTINUATION) then
        return INTERNAL, "the balancer can't pass on the header of the replica's answer"
    elseif not of_call or kind ~= RST_STREAM then
        -- As without a balancer, and by gRPC's "Status codes and their use in gRPC".
        return UNAVAILABLE, "the connection to the replica ended before it answered"
    end
    local code = tonumber(call.error)
    if code == CANCEL and _M.deadline_passed(seconds) then
        return DEADLINE_EXCEEDED, "deadline exceeded"
    end
    return STATUS[code] or INTERNAL, "the replica has reset the call with HTTP/2's error " .. code
end

return _M
