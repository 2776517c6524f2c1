-- Sends what nginx writes of responses in one round of its event loop as one.
--
-- nginx writes the header, the message and the trailers of a response one after the other, and each wakes the client.
-- That costs a fifth of nginx's processor time a call; and a client that has only the header when the worker is killed
-- loses the call for good, because no retry policy repeats one that has begun to be answered (gRFC A6, "When Retries
-- are Valid"). So the client's connection is corked with the header (tcp(7), TCP_CORK), and uncorked after the round.

local ffi = require("ffi")
local get_request = require("resty.core.base").get_request
local round = require("round")

local _M = {}

-- The beginnings of ngx_http_request_t and ngx_connection_t (src/http/ngx_http_request.h, src/core/ngx_connection.h),
-- which have been these for as long as nginx has had HTTP/2. The connection of a stream is a copy of the real one.
ffi.cdef([[
    typedef struct { void *data; void *read; void *write; int fd; } lb_connection_t;
    typedef struct { uint32_t signature; lb_connection_t *connection; } lb_request_t;
    int setsockopt(int socket, int level, int name, const void *value, uint32_t size);
    int getpeername(int socket, void *address, uint32_t *size);
]])
local SIGNATURE = 0x50545448 -- "HTTP"
local IPPROTO_TCP, TCP_CORK = 6, 3

local request_type = ffi.typeof("lb_request_t *")
local on, off, size = ffi.new("int[1]", 1), ffi.new("int[1]", 0), ffi.sizeof("int")
local corked, count = {}, 0
-- nil until a request has shown that the structures are as above.
local usable

-- If it is never called, Linux itself uncorks after 0.2 s.
local uncork = round.at_end(function()
    for index = 1, count do
        ffi.C.setsockopt(corked[index], IPPROTO_TCP, TCP_CORK, off, size)
    end
    count = 0
end)

local function check(request)
    local address, length = ffi.new("uint8_t[128]"), ffi.new("uint32_t[1]", 128)
    usable = request.signature == SIGNATURE
    if usable then
        if ffi.C.getpeername(request.connection.fd, address, length) ~= 0 then
            usable = nil -- The client has gone; the next one will do.
            return
        end
        usable = address[2] * 256 + address[3] == tonumber(ngx.var.remote_port)
    end
    if not usable then
        ngx.log(ngx.WARN, "this nginx is built otherwise than known: responses are sent in several pieces")
    end
end

-- For header_filter_by_lua.
function _M.cork()
    local request = ffi.cast(request_type, get_request())
    if usable == nil then
        check(request)
    end
    if not usable then
        return
    end
    local fd = request.connection.fd
    if count > 0 and corked[count] == fd then
        return
    end
    if not uncork() then
        return
    end
    count = count + 1
    corked[count] = fd
    ffi.C.setsockopt(fd, IPPROTO_TCP, TCP_CORK, on, size)
end

return _M
