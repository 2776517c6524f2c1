-- Chooses the replica of each call.

local aside = require("aside")
local get_request = require("resty.core.base").get_request
local ffi = require("ffi")
local inflight = require("inflight")
local ngx_balancer = require("ngx.balancer")
local peers = require("peers")

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

-- This worker's view of the list, made anew when the shared version changes.
local view = { version = -1, pools = {}, routes = {}, routed = false, default = nil, all = {}, calls = {} }

local function new_pool(name)
    local old = view.pools[name]
    return {
        peers = {}, weight = 0, weighted = false, next = nil, current = {},
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

-- Each worker begins at another place, or all would send their first calls to the same replica.
local function start_rotation(pool)
    local count = #pool.peers
    if count > 0 then
        pool.next = math.floor(ngx.worker.id() * count / ngx.worker.count()) % count
    end
end

-- Applications that say which gRPC services they have get the calls of those; all others share the rest. A single
-- application gets every call.
local function build(version)
    local list = peers.parse(shared:get("list"), require("membership").networks()) or {}
    local new = { version = version, pools = {}, routes = {}, all = list, calls = {} }
    local rest = new_pool("")
    for _, peer in ipairs(list) do
        peer.calls = view.calls[peer.key] or inflight.new()
        new.calls[peer.key] = peer.calls
        local pool = rest
        if peer.services ~= "" then
            pool = new.pools[peer.app] or new_pool(peer.app)
            new.pools[peer.app] = pool
            for service in peer.services:gmatch("[^,]+") do
                new.routes[service] = new.routes[service] or pool
            end
        end
        add(pool, peer)
    end
    new.pools[""] = rest
    local names = {}
    for name, pool in pairs(new.pools) do
        local before = view.pools[name]
        start_rotation(pool)
        if before and before.next and pool.next then
            pool.next = before.next % #pool.peers
        end
        if #pool.peers > 0 then
            names[#names + 1] = name
        end
    end
    new.default = new.pools[#names == 1 and names[1] or ""]
    new.routed = next(new.routes) ~= nil
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

local function route()
    if not view.routed then
        return view.default
    end
    local service = ngx.var.uri:match("^/([^/]+)/")
    return service and view.routes[service] or view.default
end

local function this_request()
    return tonumber(ffi.cast("uintptr_t", get_request()))
end

local function begin(request)
    local call
    if spare_count > 0 then
        call = spare[spare_count]
        spare_count = spare_count - 1
    else
        call = {}
    end
    call.pool, call.peer, call.tried = route(), nil, nil
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

-- For balancer_by_lua: names the peer of this try.
function _M.balance()
    refresh()
    local request = this_request()
    local call = calls[request]
    if not call then
        call = begin(request)
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

-- For log_by_lua: the call has ended, in whatever way.
function _M.finish()
    local request = this_request()
    local call = calls[request]
    if not call then
        return -- It was refused before it had a peer.
    end
    calls[request] = nil
    if call.peer then
        inflight.leave(call.peer.calls, call.period)
    end
    inflight.leave(call.pool.calls, call.entered)
    spare_count = spare_count + 1
    spare[spare_count] = call
end

-- The balancer's view as JSON. Every string in it has been checked to be of harmless characters by peers.lua.
function _M.view()
    refresh()
    local lines = {}
    for _, peer in ipairs(view.all) do
        lines[#lines + 1] = string.format('{"app":"%s","address":"%s","port":%d,"weight":%d,"state":"%s"}', peer.app,
            peer.address, peer.port, peer.weight,
            aside.reason(peer) or peer.held and "held" or "in service")
    end
    ngx.say(string.format('{"version":%d,"updated":%.3f,"peers":[%s]}', view.version, shared:get("updated"),
        table.concat(lines, ",")))
end

return _M
