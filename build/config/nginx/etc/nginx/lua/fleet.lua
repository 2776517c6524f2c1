-- A worker's view of the document: tables that a call is routed and a replica is picked with. A replica's table and a
-- pool's rotation survive from one document to the next, so no change of the fleet disturbs the shares.

local configuration = require("configuration")
local inflight = require("inflight")
local tcp = require("tcp")

local _M = {}

local generation
-- Where calls go that no replica can answer now, but one could before.
local NOBODY = { name = "", replicas = {}, weight = 0, weighted = false, calls = inflight.new() }

-- document: what it was made of. replicas: all, in the document's order; by_key: by their keys. pools: by name.
-- applications: by name, the pool of all replicas. services: by gRPC service, the pool that gets its calls. default: the
-- pool of all other calls, or nil. only: the pool of every call where there is no other. several: whether there are several
-- applications.
local view = {
    document = { version = "", routes = {}, changed = 0, updated = 0 }, replicas = {}, by_key = {}, pools = {},
    applications = {}, services = {}, default = NOBODY, only = NOBODY, several = false,
}

local function take_replica(entry)
    local key = entry.application .. " " .. entry.address .. ":" .. entry.port
    local replica = view.by_key[key]
    if not replica then
        replica = {
            key = key, application = entry.application, address = entry.address, port = entry.port,
            calls = inflight.new(), labels = entry.application .. "\t" .. entry.address .. ":" .. entry.port,
            -- As set_current_peer wants it.
            host = entry.address:find(":", 1, true) and "[" .. entry.address .. "]" or entry.address,
            -- For tcp.response().
            connection = { address = tcp.parse_address(entry.address), port = entry.port },
        }
    end
    replica.weight, replica.state, replica.since = entry.weight, entry.state, entry.since
    replica.serves, replica.may_serve = entry.serves, entry.may_serve
    return replica
end

-- Each worker begins at another place of the rotation, or all would send their first calls to the same replica.
local function start_rotation(pool, old)
    local count, worker, workers = #pool.replicas, ngx.worker.id(), ngx.worker.count()
    pool.position = (old and old.position or math.floor(worker * count / workers)) % math.max(count, 1)
    local before = {}
    if old and old.weighted then
        for index, replica in ipairs(old.replicas) do
            -- In proportion: with other weights it would take as many calls to come round as the old ones add up to.
            before[replica.key] = old.current[index] * pool.weight / old.weight
        end
    end
    pool.current = {}
    -- Where smooth weighted round robin (picker.lua) is about after so many calls of a whole turn, and how many of them
    -- the replicas so far have had.
    local calls, weight, had = math.floor(worker * pool.weight / workers), 0, 0
    for index, replica in ipairs(pool.replicas) do
        weight = weight + replica.weight
        local due = math.floor(calls * weight / pool.weight + 0.5)
        pool.current[index] = before[replica.key] or calls * replica.weight - (due - had) * pool.weight
        had = due
    end
end

local function take_pool(entry, replicas, calls)
    local pool = { name = entry.name, replicas = {}, weight = 0, weighted = false }
    for index, number in ipairs(entry.replicas) do
        local replica = replicas[number]
        pool.replicas[index] = replica
        pool.weight = pool.weight + replica.weight
        pool.weighted = pool.weighted or replica.weight ~= pool.replicas[1].weight
    end
    -- Calls in flight are counted for a whole application, as its replicas' are.
    local old = view.pools[entry.name]
    calls[entry.application] = calls[entry.application] or old and old.calls or inflight.new()
    pool.calls = calls[entry.application]
    start_rotation(pool, old)
    return pool
end

local function build(document)
    local new = {
        document = document, replicas = {}, by_key = {}, pools = {}, applications = {}, services = {}, default = nil,
        only = nil, several = false,
    }
    for index, entry in ipairs(document.replicas) do
        local replica = take_replica(entry)
        new.replicas[index] = replica
        new.by_key[replica.key] = replica
    end
    local pools, calls = {}, {}
    for index, entry in ipairs(document.pools) do
        pools[index] = take_pool(entry, new.replicas, calls)
        new.pools[entry.name] = pools[index]
    end
    local elsewhere = false
    -- In a document, 0 is the pool of nobody.
    for service, route in pairs(document.routes) do
        new.services[service] = pools[route.pool] or NOBODY
        elsewhere = elsewhere or route.pool ~= document.default
    end
    for application, number in pairs(document.applications) do
        new.several = next(new.applications) ~= nil
        new.applications[application] = pools[number]
    end
    if document.default then
        new.default = pools[document.default] or NOBODY
    end
    if not elsewhere then
        new.only = new.default
    end
    view = new
end

-- The view that there is, without a look for another: init_by_lua has no worker to build one for.
function _M.current()
    return view
end

-- The latest view, and whether it has changed.
function _M.refresh()
    local latest = configuration.generation()
    if latest == generation then
        return view, false
    end
    generation = latest
    local document, err = configuration.read()
    local ok
    if document then
        ok, err = pcall(build, document)
    end
    if not ok then
        ngx.log(ngx.ERR, "the document can't be used: ", err)
        return view, false
    end
    return view, true
end

return _M
