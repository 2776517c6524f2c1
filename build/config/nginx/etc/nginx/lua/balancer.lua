-- Chooses the replica of each call.

local ngx_balancer = require("ngx.balancer")
local peers = require("peers")

local _M = {}

-- A failed try is repeated at so many other replicas at the most.
local MORE_TRIES = 4
-- How long a peer that failed stays set aside if nobody brings it back; the keeper's probe does, long before.
local SET_ASIDE_SECONDS = 30

local shared = ngx.shared.membership
local set_aside = ngx.shared.set_aside

-- This worker's view of the list, made anew when the shared version changes.
local view = { version = -1, pools = {}, routes = {}, default = nil, all = {} }

local function new_pool(name)
    return { name = name, peers = {}, weighted = false, next = nil, current = {} }
end

local function add(pool, peer)
    local list = pool.peers
    list[#list + 1] = peer
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
    local old = view
    view = { version = version, pools = {}, routes = {}, all = list }
    local rest = new_pool("")
    for _, peer in ipairs(list) do
        local pool = rest
        if peer.services ~= "" then
            pool = view.pools[peer.app] or new_pool(peer.app)
            view.pools[peer.app] = pool
            for service in peer.services:gmatch("[^,]+") do
                view.routes[service] = view.routes[service] or pool
            end
        end
        add(pool, peer)
    end
    view.pools[""] = rest
    local names = {}
    for name, pool in pairs(view.pools) do
        local before = old.pools[name]
        start_rotation(pool)
        if before and before.next and pool.next then
            pool.next = before.next % #pool.peers
        end
        if #pool.peers > 0 then
            names[#names + 1] = name
        end
    end
    view.default = view.pools[#names == 1 and names[1] or ""]
end

local function refresh()
    local version = shared:get("version")
    if version ~= view.version then
        build(version)
    end
end

-- Smooth weighted round robin, nginx's own: over any stretch of calls the shares follow the weights.
local function pick_weighted(pool, usable, tried)
    local best, total = nil, 0
    for index, peer in ipairs(pool.peers) do
        if usable(peer, tried) then
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

local function pick_equal(pool, usable, tried)
    local count = #pool.peers
    for _ = 1, count do
        local index = pool.next + 1
        pool.next = index % count
        local peer = pool.peers[index]
        if usable(peer, tried) then
            return peer
        end
    end
    return nil
end

local function untried(peer, tried)
    return not (tried and tried[peer.key])
end

local function in_service(peer, tried)
    return untried(peer, tried) and not set_aside:get(peer.key)
end

local function pick(pool, tried)
    local choose = pool.weighted and pick_weighted or pick_equal
    -- If all are set aside, all are tried.
    return choose(pool, in_service, tried) or choose(pool, untried, tried)
end

local function route()
    local service = ngx.var.uri:match("^/([^/]+)/")
    return service and view.routes[service] or view.default
end

-- For balancer_by_lua: names the peer of this try.
function _M.balance()
    refresh()
    local call = ngx.ctx.call
    if not call then
        call = {}
        ngx.ctx.call = call
        call.pool = route()
        if #call.pool.peers == 0 then
            return ngx.exit(ngx.ERROR)
        end
        if #call.pool.peers > 1 then
            ngx_balancer.set_more_tries(math.min(#call.pool.peers - 1, MORE_TRIES))
        end
    elseif call.peer then
        -- nginx asks again: nobody was reached at the last peer.
        local key = call.peer.key
        if set_aside:add(key, true, SET_ASIDE_SECONDS) then
            ngx.log(ngx.WARN, "set aside peer=", key)
        end
        call.tried = call.tried or {}
        call.tried[key] = true
    end
    local peer = pick(call.pool, call.tried)
    if not peer then
        return ngx.exit(ngx.ERROR)
    end
    call.peer = peer
    local ok, err = ngx_balancer.set_current_peer(peer.address, peer.port)
    if not ok then
        ngx.log(ngx.ERR, "peer=", peer.key, " can't be used: ", err)
        return ngx.exit(ngx.ERROR)
    end
end

-- The balancer's view as JSON. Every string in it has been checked to be of harmless characters by peers.lua.
function _M.view()
    refresh()
    local lines = {}
    for _, peer in ipairs(view.all) do
        lines[#lines + 1] = string.format('{"app":"%s","address":"%s","port":%d,"weight":%d,"state":"%s"}', peer.app,
            peer.address, peer.port, peer.weight,
            set_aside:get(peer.key) and "set aside" or peer.held and "held" or "in service")
    end
    ngx.say(string.format('{"version":%d,"updated":%.3f,"peers":[%s]}', view.version, shared:get("updated"),
        table.concat(lines, ",")))
end

return _M
