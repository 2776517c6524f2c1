-- Chooses the replica of each call.

local aside = require("aside")
local get_request = require("resty.core.base").get_request
local ffi = require("ffi")
local inflight = require("inflight")
local metrics = require("metrics")
local ngx_balancer = require("ngx.balancer")
local peers = require("peers")
local routes = require("routes")
local tcp = require("tcp")

local _M = {}

-- A failed try is repeated at so many other replicas at the most.
local MORE_TRIES = 4
-- A replica may have so many times its share of the calls in flight, and so many in any case. A replica that has
-- stopped answering gets no more than that until the probe has found it out, and a slow one doesn't collect all. Few
-- calls at once are shared evenly, a replica included that is slow because it has just started.
local SHARE, LEAST_SHARE = 1.25, 8

local shared = ngx.shared.membership

-- The calls that this worker has, by the address of nginx's request. ngx.ctx would do, but costs more and does not
-- survive error_page. finish() takes a call out, whatever its end, and its table is used again.
local calls, spare, spare_count = {}, {}, 0

-- Where calls go that nobody can answer now, but somebody could before.
local NOBODY = { peers = {}, calls = inflight.new() }
-- So many paths of so many bytes are remembered with their pools; callers choose them.
local MAX_PATHS, MAX_PATH_BYTES = 4096, 200

-- This worker's view of the list, made anew when the shared version changes: the pools by name; by application the one
-- of all its replicas; by service the one that has it; what gets all other calls; by path what has been found.
local view = {
    version = -1, pools = {}, applications = {}, services = {}, default = NOBODY, only = NOBODY, paths = {}, path_count = 0,
    all = {}, calls = {},
}

local function new_pool(name)
    local old = view.pools[name]
    return {
        name = name, peers = {}, weight = 0, weighted = false, next = nil, current = {},
        calls = old and old.calls or inflight.new(),
    }
end

local function add(pool, peer)
    local list = pool.peers
    list[#list + 1] = peer
    pool.weight = pool.weight + peer.weight
    pool.weighted = pool.weighted or peer.weight ~= list[1].weight
    pool.current[#list] = 0
end

-- Each worker begins at another place, or all would send their first calls to the same replica; a pool that was there
-- before goes on where it was.
local function start_rotation(pool)
    local count, old = #pool.peers, view.pools[pool.name]
    if count > 0 then
        local before = old and old.next
        pool.next = (before or math.floor(ngx.worker.id() * count / ngx.worker.count())) % count
    end
end

local function set_of(services)
    local set = {}
    for service in services:gmatch("[^,]+") do
        set[service] = true
    end
    return set
end

-- The replicas of an application that have a service: all of them but while a version with another set of services is
-- rolled out. One that says nothing of its services, such as a replica registered by hand, is taken to have its
-- application's. The calls in flight are counted for the whole application, as its replicas are.
local function pool_of_service(new, application, service)
    if not application.mixed then
        return application
    end
    local having = {}
    for text, set in pairs(application.sets) do
        if set[service] then
            having[#having + 1] = text
        end
    end
    if #having == 0 then
        return application
    end
    table.sort(having)
    local name = application.name .. " " .. table.concat(having, " ")
    local pool = new.pools[name]
    if pool then
        return pool
    end
    pool = new_pool(name)
    pool.calls = application.calls
    for _, peer in ipairs(application.peers) do
        if peer.services == "" or application.sets[peer.services][service] then
            add(pool, peer)
        end
    end
    pool.weight = application.weight
    new.pools[name] = pool
    return pool
end

-- Applications that say which gRPC services they have get the calls of those, and all others share the rest. A single
-- application gets every call but those of a service that another had a moment ago.
local function build(version)
    metrics.forget()
    local list = peers.parse(shared:get("list"), require("membership").networks()) or {}
    local new = {
        version = version, pools = {}, applications = {}, services = {}, default = nil, only = nil, paths = {},
        path_count = 0, all = list, calls = {}, owners = routes.read(shared:get("routes")),
    }
    local rest, names = new_pool(""), 0
    for _, peer in ipairs(list) do
        peer.calls = view.calls[peer.key] or inflight.new()
        new.calls[peer.key] = peer.calls
        local application = new.applications[peer.app]
        if not application then
            application = new_pool(peer.app)
            application.sets = {}
            new.applications[peer.app] = application
            new.pools[peer.app] = application
            names = names + 1
        end
        if peer.services ~= "" and not application.sets[peer.services] then
            application.mixed = next(application.sets) ~= nil
            application.sets[peer.services] = set_of(peer.services)
        end
        add(application, peer)
    end
    for _, peer in ipairs(list) do
        if not next(new.applications[peer.app].sets) then
            add(rest, peer)
        end
    end
    new.pools[""] = rest
    local elsewhere = false
    for service, owner in pairs(new.owners) do
        local application = new.applications[owner.app]
        new.services[service] = application and pool_of_service(new, application, service) or NOBODY
        elsewhere = elsewhere or new.services[service] ~= application
    end
    for _, pool in pairs(new.pools) do
        start_rotation(pool)
    end
    local _, first = next(new.applications)
    if names == 0 then
        new.default = NOBODY
    elseif names == 1 then
        new.default = first
    elseif #rest.peers > 0 then
        new.default = rest
    end
    -- Where every call goes, if there is no other place.
    new.only = not elsewhere and names < 2 and new.default or nil
    view = new
end

local refreshed_at

-- Looks for changes, once in each round of nginx's event loop at the most.
local function refresh()
    local now = ngx.now()
    if now == refreshed_at then
        return
    end
    refreshed_at = now
    inflight.advance(now)
    aside.refresh()
    local version = shared:get("version")
    if version ~= view.version then
        build(version)
    end
end

-- Smooth weighted round robin, nginx's own: over any stretch of calls the shares follow the weights.
local function pick_weighted(pool, usable, tried, most)
    local best, total = nil, 0
    for index, peer in ipairs(pool.peers) do
        if usable(peer, tried, most) then
            local current = pool.current[index] + peer.weight
            pool.current[index] = current
            total = total + peer.weight
            if not best or current > pool.current[best] then
                best = index
            end
        end
    end
    if not best then
        return nil
    end
    pool.current[best] = pool.current[best] - total
    return pool.peers[best]
end

local function pick_equal(pool, usable, tried, most)
    local count = #pool.peers
    for _ = 1, count do
        local index = pool.next + 1
        pool.next = index % count
        local peer = pool.peers[index]
        if usable(peer, tried, most) then
            return peer
        end
    end
    return nil
end

local function untried(peer, tried)
    return not (tried and tried[peer.key])
end

local function in_service(peer, tried)
    return untried(peer, tried) and not aside.reason(peer)
end

local function within_share(peer, tried, most)
    local calls = inflight.count(peer.calls)
    return (calls < LEAST_SHARE or calls < most * peer.weight) and in_service(peer, tried)
end

local function not_gone(peer, tried)
    return untried(peer, tried) and not aside.is_gone(peer)
end

local function pick(pool, tried)
    local choose = pool.weighted and pick_weighted or pick_equal
    local most = SHARE * (inflight.count(pool.calls) + 1) / pool.weight
    -- If all are set aside, all are tried that may be there.
    return choose(pool, within_share, tried, most) or choose(pool, in_service, tried) or choose(pool, not_gone, tried)
end

-- The pool of a call; nil when no application has its service.
local function route()
    if view.only then
        return view.only
    end
    local path = ngx.var.uri
    local pool = view.paths[path]
    if pool then
        return pool
    end
    local service = path:match("^/([^/]+)/")
    pool = service and view.services[service]
    if not pool then
        -- Services that every application has, such as reflection: the caller may name the one it means.
        return view.applications[ngx.var.http_x_application or ""] or view.default
    end
    if #path <= MAX_PATH_BYTES then
        if view.path_count >= MAX_PATHS then
            view.paths, view.path_count = {}, 0
        end
        view.paths[path] = pool
        view.path_count = view.path_count + 1
    end
    return pool
end

local function this_request()
    return tonumber(ffi.cast("uintptr_t", get_request()))
end

local function begin(request)
    local pool, call = route(), nil
    if not pool then
        return nil
    end
    if spare_count > 0 then
        call = spare[spare_count]
        spare_count = spare_count - 1
    else
        call = {}
    end
    call.pool, call.peer, call.tried = pool, nil, nil
    call.entered = inflight.enter(call.pool.calls)
    calls[request] = call
    local count = #call.pool.peers
    if count > 1 then
        ngx_balancer.set_more_tries(math.min(count - 1, MORE_TRIES))
    end
    return call
end

-- nginx asks again: nobody was reached at the last peer.
local function failed(call)
    aside.put(call.peer, "refused")
    inflight.leave(call.peer.calls, call.period)
    call.tried = call.tried or {}
    call.tried[call.peer.key] = true
    call.peer = nil
end

-- The answer that error_page makes of ngx.ERROR, where it is not that no replica could be reached.
local function unimplemented()
    ngx.var.lb_grpc_status = 12
    local service = ngx.var.uri:match("^/([%w_.]+)/")
    ngx.var.lb_grpc_message = service and "no application has the service " .. service or "no such method"
    return ngx.exit(ngx.ERROR)
end

-- For balancer_by_lua: names the peer of this try.
function _M.balance()
    refresh()
    local request = this_request()
    local call = calls[request]
    if not call then
        call = begin(request)
        if not call then
            return unimplemented()
        end
    elseif call.peer then
        failed(call)
    end
    local peer = #call.pool.peers > 0 and pick(call.pool, call.tried)
    if not peer then
        return ngx.exit(ngx.ERROR)
    end
    local ok, err = ngx_balancer.set_current_peer(peer.address, peer.port)
    if not ok then
        ngx.log(ngx.ERR, "peer=", peer.key, " can't be used: ", err)
        return ngx.exit(ngx.ERROR)
    end
    call.peer = peer
    call.period = inflight.enter(peer.calls)
end

-- For header_filter_by_lua.
function _M.answered()
    local call = calls[this_request()]
    local peer = call and call.peer
    if peer and not peer.connection then
        peer.connection = { address = tcp.parse_address(peer.address), port = peer.port }
    end
    tcp.response(peer and peer.connection)
end

-- For log_by_lua: the call has ended, in whatever way.
function _M.finish()
    local request = this_request()
    local call = calls[request]
    local peer = call and call.peer
    -- Without one it was refused before it had a peer.
    if call then
        calls[request] = nil
        if peer then
            inflight.leave(peer.calls, call.period)
        end
        inflight.leave(call.pool.calls, call.entered)
        spare_count = spare_count + 1
        spare[spare_count] = call
    end
    if metrics.counts or metrics.logs then
        metrics.ended(peer)
    end
end

local function state_of(peer)
    return aside.reason(peer) or peer.held and "held" or "in service"
end

-- For init_worker_by_lua.
function _M.init_worker()
    metrics.init_worker(function()
        refresh()
        return view.all
    end)
end

-- The answer to /metrics.
function _M.metrics()
    refresh()
    ngx.header.content_type = "text/plain; version=0.0.4; charset=utf-8"
    metrics.say(view.all, state_of, shared:get("updated"))
end

-- The balancer's view as JSON. Every string in it has been checked to be of harmless characters by peers.lua.
function _M.view()
    refresh()
    local replicas, services = {}, {}
    for _, peer in ipairs(view.all) do
        local form = '{"app":"%s","address":"%s","port":%d,"weight":%d,"state":"%s","last_call":%s,"last_status":"%s"}'
        replicas[#replicas + 1] = string.format(form, peer.app, peer.address, peer.port, peer.weight, state_of(peer),
            metrics.last_call(peer))
    end
    for service, owner in pairs(view.owners) do
        services[#services + 1] = string.format('{"service":"%s","app":"%s","replicas":%d,"also":"%s"}', service,
            owner.app, #view.services[service].peers, owner.others)
    end
    table.sort(services)
    ngx.say(string.format('{"version":%d,"updated":%.3f,"peers":[%s],"services":[%s]}', view.version,
        shared:get("updated"), table.concat(replicas, ","), table.concat(services, ",")))
end

return _M
