-- How a call ends that has no gRPC status of its replica's.

local ffi = require("ffi")
local get_request = require("resty.core.base").get_request
require("tcp") -- for lb_request_t

local _M = {}

-- A client whose deadline has passed cancels its call, and its deadline began when the call left it.
local EARLY_SECONDS = 0.05
-- How much later than its client a replica ends a call; and the largest number of grpc-timeout.
local LATER_MILLISECONDS, MOST_DIGITS = 100, 99999999
local UNITS = { H = 3600, M = 60, S = 1, m = 1e-3, u = 1e-6, n = 1e-9 }

local CANCELLED, DEADLINE_EXCEEDED, PERMISSION_DENIED, RESOURCE_EXHAUSTED, INTERNAL, UNAVAILABLE = 1, 4, 7, 8, 13, 14
-- By error code of HTTP/2, where it is not INTERNAL ("gRPC over HTTP2", Errors).
local REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM, INADEQUATE_SECURITY = 7, 8, 11, 12
local STATUS = {
    [REFUSED_STREAM] = UNAVAILABLE, [CANCEL] = CANCELLED, [ENHANCE_YOUR_CALM] = RESOURCE_EXHAUSTED,
    [INADEQUATE_SECURITY] = PERMISSION_DENIED,
}
local HEADERS, RST_STREAM, GOAWAY, CONTINUATION, LAST_CODE = 1, 3, 7, 9, 0xd

-- What nginx's gRPC module knows of a call, up to what is read here: the frame that it has read last, whose code and
-- stream are those of RST_STREAM or GOAWAY. The same in 1.22.0 to 1.31.4. The compiler's layout of ngx_http_grpc_ctx_t.
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
-- nginx exports its own symbols for modules that are loaded; one that is built otherwise has none to load.
local known, index = pcall(function() return tonumber(ffi.C.ngx_http_grpc_module.ctx_index) end)

-- For balancer_by_lua: what of() needs of this call; it is valid as long as the request.
function _M.context()
    if not known then
        return nil
    end
    local request = ffi.cast(request_type, get_request())
    return tonumber(ffi.cast("uintptr_t", ffi.cast(contexts_type, request.ctx)[index]))
end

-- Whether the deadline of a call has passed that has taken so long.
function _M.deadline_passed(seconds)
    local amount, unit = (ngx.var.http_grpc_timeout or ""):match("^(%d+)([HMSmun])$")
    return amount ~= nil and seconds >= amount * UNITS[unit] - EARLY_SECONDS
end

-- The grpc-timeout that a replica gets of a call with this one. Client and server each end a call whose deadline has
-- passed, the client with a status; of a server that is first, in the middle of an answer, nginx can only make INTERNAL.
function _M.timeout(given)
    local amount, unit = given:match("^(%d+)([HMSmun])$")
    local milliseconds = amount and math.ceil(amount * UNITS[unit] * 1e3) + LATER_MILLISECONDS
    if not milliseconds or milliseconds > MOST_DIGITS then
        return given
    end
    return ("%dm"):format(milliseconds)
end

-- The status of a call, as a number, and its message: the replica has got it, or a part of it, and has not answered it
-- after `seconds`.
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
        -- By gRPC's own table ("Status codes and their use in gRPC"), and as it is without a balancer.
        return UNAVAILABLE, "the connection to the replica ended before it answered"
    end
    local code = tonumber(call.error)
    if code == CANCEL and _M.deadline_passed(seconds) then
        return DEADLINE_EXCEEDED, "deadline exceeded"
    end
    return STATUS[code] or INTERNAL, "the replica has reset the call with HTTP/2's error " .. code
end

return _M
