-- The life of a call: accept(), balance() for each try, answered(), finish().

local cjson = require("cjson")
local clock = require("clock")
local ejection = require("ejection")
local ffi = require("ffi")
local fleet = require("fleet")
local get_request = require("resty.core.base").get_request
local inflight = require("inflight")
local metrics = require("metrics")
local ngx_balancer = require("ngx.balancer")
local outcome = require("outcome")
local picker = require("picker")
local router = require("router")
local tcp = require("tcp")

local _M = {}

-- The upstream of health and reflection for all applications.
local ANSWERS = "grpc://answers"
-- The time to connect with TLS, in place of grpc_connect_timeout: a kernel accepts TCP's connections however busy its
-- server is, but TLS's handshake waits for the server.
local TLS_CONNECT_SECONDS = 3
-- The most calls that a worker has at once, as a part of its connections. Their number is worker_connections, which
-- nginx does not tell Lua, or the limit of open files where that is lower. A call takes a connection to a replica and
-- may have a client's of its own; the rest is for idle ones and for /configuration, which callers must not block.
ffi.cdef([[
    typedef struct { unsigned long current; unsigned long maximum; } lb_limit_t;
    int getrlimit(int resource, lb_limit_t *limit);
]])
local RLIMIT_NOFILE, CALLS_PART = 7, 0.36
local limit = ffi.new("lb_limit_t")
ffi.C.getrlimit(RLIMIT_NOFILE, limit)
local file = assert(io.open(ngx.config.prefix() .. "../../etc/nginx/nginx.conf"))
local worker_connections = tonumber(file:read("*a"):match("worker_connections (%d+);"))
file:close()
local MAX_CALLS = math.floor(math.min(worker_connections, tonumber(limit.current)) * CALLS_PART)
-- The time between two log lines about refused calls.
local REFUSED_SECONDS, refused_at = 10, 0

-- The calls of this worker, by the address of nginx's request. ngx.ctx costs more, and error_page clears it. finish()
-- removes a call and keeps its table for another one.
local calls, spare, spare_count = {}, {}, 0
local open_calls = 0

local view = fleet.current()
local refreshed_at

-- Looks for changes, at most once in each event-loop iteration, because nginx's time stands still within one.
local function refresh()
    local now = ngx.now()
    if now == refreshed_at then
        return
    end
    refreshed_at = now
    inflight.advance(clock.now())
    ejection.refresh()
    local changed
    view, changed = fleet.refresh()
    if changed then
        metrics.forget()
    end
end

local function this_request()
    return tonumber(ffi.cast("uintptr_t", get_request()))
end

local function enter(call, pool)
    call.pool = pool
    call.entered = inflight.enter(pool.calls)
end

-- Chooses between TLS and clear text, which nginx must know before it asks for a replica. All tries of a call are of
-- one kind. In a pool of both kinds, which an application has while it changes from one to the other, the kind is that
-- of the replica whose turn it is.
local function choose(call)
    local pool = router.route(view, ngx.var.uri, ngx.var.http_x_application)
    if not pool or not pool.tls then
        return
    end
    if pool.kinds then
        call.first = picker.pick(pool, nil, clock.now())
        pool = pool.kinds[call.first ~= nil and call.first.tls]
    end
    if pool.tls and not ngx.var.lb_application then
        pool = fleet.nobody -- nginx has no TLS with replicas any more, and the snapshot is of before.
    end
    enter(call, pool)
    if pool.tls then
        ngx.var.lb_upstream = "grpcs://grpc_replicas_tls"
        ngx.var.lb_application = pool.replicas[1].application
    end
end

-- For access_by_lua: a call has begun.
function _M.accept()
    if open_calls >= MAX_CALLS then
        local now = clock.now()
        if now > refused_at + REFUSED_SECONDS then
            refused_at = now
            ngx.log(ngx.WARN, "this worker has ", open_calls, " calls, new ones get RESOURCE_EXHAUSTED")
        end
        ngx.var.lb_exhausted_message = "too many calls at once at this balancer"
        return ngx.exit(429)
    end
    local call = spare[spare_count] or {}
    spare_count = math.max(spare_count - 1, 0)
    call.began, call.pool, call.replica, call.tried, call.context = clock.now(), nil, nil, nil, nil
    call.begun, call.first = false, nil
    calls[this_request()] = call
    open_calls = open_calls + 1
    local timeout = ngx.var.http_grpc_timeout
    if timeout then
        ngx.var.lb_grpc_timeout = outcome.timeout(timeout)
    end
    tcp.gather()
    -- Afterwards, because the replicas may change meanwhile. nginx asks for the first replica in the same iteration.
    refresh()
    if view.tls and ngx.var.lb_upstream ~= ANSWERS then
        choose(call)
    end
end

-- For access_by_lua: a call of health or reflection has begun. Every application has these services: with several
-- applications, balancer/answers.py answers for all of them, unless the caller names one.
function _M.accept_shared()
    refresh()
    if view.several and not ngx.var.http_x_application then
        ngx.var.lb_upstream = ANSWERS
    end
    return _M.accept()
end

-- Ends a call as UNIMPLEMENTED: error_page answers ngx.ERROR with the status and the message that are set here.
local function unimplemented()
    ngx.var.lb_grpc_status = 12
    local service = ngx.var.uri:match("^/([%w_.]+)/")
    ngx.var.lb_grpc_message = service and "no application has the service " .. service or "no such method"
    return ngx.exit(ngx.ERROR)
end

local function begin(call)
    if not call.pool then
        local pool = router.route(view, ngx.var.uri, ngx.var.http_x_application)
        if not pool then
            return false
        end
        enter(call, pool)
    end
    call.begun = true
    call.context = outcome.context()
    local count = #call.pool.replicas
    if count > 1 then
        -- grpc_next_upstream_tries is the limit.
        ngx_balancer.set_more_tries(count - 1)
    end
    if call.pool.tls then
        ngx_balancer.set_timeouts(TLS_CONNECT_SECONDS)
    end
    return true
end

local function give_up(call, replica, reason)
    ejection.eject(replica, reason)
    call.tried = call.tried or {}
    call.tried[replica.key] = true
end

-- For balancer_by_lua: gives nginx the replica of this try.
function _M.balance()
    local call = calls[this_request()]
    if not call.begun then
        if not begin(call) then
            return unimplemented()
        end
    elseif call.replica then
        -- nginx asks again because the last replica could not be reached.
        refresh()
        inflight.leave(call.replica.calls, call.period)
        give_up(call, call.replica, "no connection")
        call.replica = nil
    end
    local now = clock.now()
    local replica = call.first or picker.pick(call.pool, call.tried, now)
    call.first = nil
    while replica do
        local ok, err = ngx_balancer.set_current_peer(replica.host, replica.port)
        if ok then
            call.replica = replica
            call.period = inflight.enter(replica.calls)
            return
        end
        give_up(call, replica, err)
        replica = picker.pick(call.pool, call.tried, now)
    end
    return ngx.exit(ngx.ERROR)
end

-- For header_filter_by_lua: a response begins.
function _M.answered()
    local call = calls[this_request()]
    local replica = call and call.replica
    -- nginx would add these to a response without them.
    local header = ngx.header
    if not header.server then
        header.server = nil
    end
    if not header.date then
        header.date = nil
    end
    tcp.response(replica and replica.connection)
end

-- For header_filter_by_lua of @unavailable: no replica has answered the call.
function _M.failed()
    local call = calls[this_request()]
    local sent = (ngx.var.upstream_bytes_sent or ""):match("(%d+)$")
    if call and call.replica and sent and sent ~= "0" then
        local status, message = outcome.of(call.context, clock.now() - call.began)
        ngx.var.lb_grpc_status, ngx.var.lb_grpc_message = status, message
    end
    tcp.response(nil)
end

-- For log_by_lua: a request has ended. One that nginx refused before accept() is not in `calls`.
function _M.finish()
    local request = this_request()
    local call = calls[request]
    local replica, seconds = nil, 0
    if call then
        calls[request] = nil
        replica, seconds = call.replica, clock.now() - call.began
        if replica then
            inflight.leave(replica.calls, call.period)
        end
        if call.pool then
            inflight.leave(call.pool.calls, call.entered)
        end
        open_calls = open_calls - 1
        spare_count = spare_count + 1
        spare[spare_count] = call
    end
    if metrics.counts or metrics.logs then
        metrics.record(replica, seconds)
    end
end

local function state_of(replica)
    return replica.serves and ejection.is_ejected(replica, clock.now()) and "ejected: refused" or replica.state
end

-- The latest document.
function _M.document()
    refresh()
    return view.document
end

-- For init_worker_by_lua.
function _M.init_worker()
    metrics.init_worker(function()
        refresh()
        return view.replicas
    end)
end

-- Answers /metrics.
function _M.metrics()
    refresh()
    ngx.header.content_type = "text/plain; version=0.0.4; charset=utf-8"
    metrics.say(view.replicas, state_of, clock.now() - view.document.changed, view.document)
end

local empty_array = setmetatable({}, cjson.array_mt)

-- Answers /state with the replicas and routes of this nginx, as JSON.
function _M.state()
    refresh()
    local replicas, services = {}, {}
    for index, replica in ipairs(view.replicas) do
        local ended, status = metrics.last_call(replica)
        replicas[index] = {
            application = replica.application, address = replica.address, port = replica.port,
            weight = replica.weight, state = state_of(replica), last_call = ended, last_status = status,
        }
    end
    for service, route in pairs(view.document.routes) do
        services[#services + 1] = {
            service = service, application = route.application, replicas = #view.services[service].replicas,
            also = route.also,
        }
    end
    table.sort(services, function(a, b) return a.service < b.service end)
    ngx.say(cjson.encode({
        version = view.document.version, updated = view.document.updated,
        replicas = #replicas > 0 and replicas or empty_array,
        services = #services > 0 and services or empty_array,
    }))
end

return _M
