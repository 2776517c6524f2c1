-- Writes to TCP connections in fewer and larger pieces than nginx does, without waiting for acknowledgements.
--
--   gather    A call goes on to its replica at the end of the event-loop iteration that has brought its header. Most
--             often its message is there by then, so the replica wakes once, not twice. A client that resets each call
--             at once (CVE-2023-44487) causes no connections to replicas, because its calls have ended by then.
--   cork      The header, the message and the trailers of a response leave in one piece (tcp(7), TCP_CORK), which saves
--             a fifth of nginx's processor time a call. It also saves calls when a worker is killed: a client that has
--             only the header loses its call, because no retry policy repeats a call whose answer has begun (gRFC A6,
--             "When Retries are Valid").
--   no_delay  The connection to a replica gets TCP_NODELAY with its first response. nginx sets it only where it streams
--             a request's body, and a gathered call is complete. Without it the acknowledgement of a server's PING
--             (sent by grpc-go and C-core to measure bandwidth) delays the next call by 40 ms (Nagle's algorithm
--             against the server's delayed acknowledgement). The first response is soon enough: until then the
--             connection has carried one call, and a call in several segments does not wait for itself, because Linux
--             holds back a small segment only while another small one is unacknowledged.
--
-- It depends on the first members of nginx's structures (src/http/ngx_http_request.h, src/core/ngx_connection.h,
-- src/http/ngx_http_upstream.h, src/event/ngx_event_connect.h), which are the same in nginx 1.22.0 to 1.31.4. Both
-- connections are checked with getpeername(2) against nginx's variables and the replica's address. An unexpected one
-- turns off the functions that depend on it in that worker, with one warning in the log. Without nginx's cache
-- (--without-http-cache) the structures differ; calls are not gathered then, and nginx sets TCP_NODELAY itself.
-- $remote_port must be the connection's, so the realip module must not be used for gRPC.
--
-- To remove it: remove its calls from balancer.lua and fleet.lua, lua_check_client_abort from load-balancer.tpl, and
-- outcome.lua, which uses lb_request_t.

local ffi = require("ffi")
local get_request = require("resty.core.base").get_request
local semaphore = require("ngx.semaphore")

local _M = {}

ffi.cdef([[
    typedef struct { void *data; void *read; void *write; int fd; } lb_connection_t;
    typedef struct { void *read_event_handler; void *write_event_handler; lb_connection_t *connection; } lb_upstream_t;
    typedef struct {
        uint32_t signature;
        lb_connection_t *connection; /* of a stream: a copy of its connection, with the same descriptor */
        void *ctx; void *main_conf; void *srv_conf; void *loc_conf;
        void *read_event_handler; void *write_event_handler;
        void *cache; /* only in an nginx that is built with its cache */
        lb_upstream_t *upstream;
    } lb_request_t;
    int setsockopt(int socket, int level, int name, const void *value, uint32_t size);
    int getpeername(int socket, void *address, uint32_t *size);
    int inet_pton(int family, const char *text, void *address);
]])
local SIGNATURE = 0x50545448 -- "HTTP"
local IPPROTO_TCP, TCP_NODELAY, TCP_CORK = 6, 1, 3
local AF_INET, AF_INET6 = 2, 10
local ADDRESS_BYTES = 128
-- A timer without delay that has not run by then never will, because nginx was out of timers or connections.
local LATE_SECONDS = 0.1

local request_type = ffi.typeof("lb_request_t *")
local on, off, size = ffi.new("int[1]", 1), ffi.new("int[1]", 0), ffi.sizeof("int")
local found, found_size = ffi.new("uint8_t[?]", ADDRESS_BYTES), ffi.new("uint32_t[1]")

-- Whether the structures of the connections to clients and to replicas are as expected; nil until a request has shown
-- it.
local client_known
local replica_known
-- Checked clients in a row that had disconnected; MAX_UNSEEN of them can't be chance.
local unseen, MAX_UNSEEN = 0, 100
if ngx.config.nginx_configure():find("--without-http-cache", 1, true) then
    replica_known = false
end

-- Returns a function that has `work` done once at the end of the event-loop iteration, however often it is called in
-- it. The function returns false where that is impossible, as in a worker that is ending.
local function at_end(work)
    local since
    local function run()
        since = nil
        work()
    end
    return function()
        local now = ngx.now()
        -- After the clock was set back a timer runs late, so another one is started.
        if not since or now > since + LATE_SECONDS or now < since then
            -- nginx runs its timers after all events of an iteration.
            if not ngx.timer.at(0, run) then
                return false
            end
            since = now
        end
        return true
    end
end

-- Reads the address of a connection's peer into `found`; returns whether there is one.
local function get_peer(connection)
    found_size[0] = ADDRESS_BYTES
    return ffi.C.getpeername(connection.fd, found, found_size) == 0
end

local function found_port()
    return found[2] * 256 + found[3]
end

-- Parses an IP address into the form of getpeername, family and bytes; returns nil for other text.
function _M.parse_address(text)
    local bytes = ffi.new("uint8_t[16]")
    if ffi.C.inet_pton(AF_INET, text, bytes) == 1 then
        return { family = AF_INET, offset = 4, length = 4, bytes = ffi.string(bytes, 4) }
    end
    if ffi.C.inet_pton(AF_INET6, text, bytes) == 1 then
        return { family = AF_INET6, offset = 8, length = 16, bytes = ffi.string(bytes, 16) }
    end
    return nil
end

local function is_found(address, port)
    return found[0] + found[1] * 256 == address.family and found_port() == port
        and ffi.string(found + address.offset, address.length) == address.bytes
end

local corked, corked_count = {}, 0

-- Linux uncorks after 0.2 s by itself.
local uncork = at_end(function()
    for index = 1, corked_count do
        ffi.C.setsockopt(corked[index], IPPROTO_TCP, TCP_CORK, off, size)
    end
    corked_count = 0
end)

local function check_client(request)
    if request.signature ~= SIGNATURE then
        client_known, replica_known = false, false
    elseif get_peer(request.connection) then
        client_known = found_port() == tonumber(ngx.var.remote_port)
    else
        unseen = unseen + 1
        if unseen < MAX_UNSEEN then
            return -- The client has disconnected; the next one is checked.
        end
        client_known = false
    end
    if not client_known then
        replica_known = false
        ngx.log(ngx.WARN, "the structures of this nginx are unknown: responses are sent in several pieces")
    end
end

local function cork(connection)
    local fd = connection.fd
    if corked_count > 0 and corked[corked_count] == fd then
        return
    end
    if not uncork() then
        return
    end
    corked_count = corked_count + 1
    corked[corked_count] = fd
    ffi.C.setsockopt(fd, IPPROTO_TCP, TCP_CORK, on, size)
end

-- Sets TCP_NODELAY at every response, which costs less than to know the connections that have it, because descriptors
-- are used again.
local function no_delay(request, replica)
    local upstream = request.upstream
    if upstream == nil or upstream.connection == nil or not get_peer(upstream.connection) then
        return
    end
    replica_known = is_found(replica.address, replica.port)
    if replica_known then
        ffi.C.setsockopt(upstream.connection.fd, IPPROTO_TCP, TCP_NODELAY, on, size)
    else
        ngx.log(ngx.WARN, "the structures of this nginx are unknown: calls are sent in several pieces")
    end
end

-- For header_filter_by_lua: corks the response, before its header is written. `replica` has the `port` of its source
-- and the `address` by parse_address(); nil for a response of nginx's own.
function _M.response(replica)
    local request = ffi.cast(request_type, get_request())
    if client_known == nil then
        check_client(request)
    end
    if client_known then
        cork(request.connection)
        if replica and replica_known ~= false then
            no_delay(request, replica)
        end
    end
end

local waiting = semaphore.new(0)

local let_go = at_end(function()
    -- Minus the number of waiting calls, without those that their clients have reset.
    local count = -waiting:count()
    if count > 0 then
        waiting:post(count)
    end
end)

-- For access_by_lua: waits for the end of the iteration. ngx.sleep(0) would log a warning each time.
function _M.gather()
    if replica_known ~= false and let_go() then
        waiting:wait(LATE_SECONDS)
    end
end

return _M
