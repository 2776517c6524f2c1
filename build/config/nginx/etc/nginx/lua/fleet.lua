-- A worker's view of the document, in the tables that router.lua and picker.lua use. A replica's table and a pool's
-- rotation survive from one document to the next, so changes of the fleet do not disturb the shares.

local configuration = require("configuration")
local inflight = require("inflight")
local tcp = require("tcp")

local _M = {}

local generation
-- The pool of services without a replica: their calls get UNAVAILABLE.
local NOBODY = { name = "", replicas = {}, weight = 0, weighted = false, calls = inflight.new() }

_M.nobody = NOBODY

-- document: the source of the view. replicas: all, in the document's order; by_key: the same by their keys. pools: by
-- name. applications: by name, the pool of all replicas of an application. services: by gRPC service, the pool that
-- gets its calls. default: the pool of all other calls, or nil. only: the pool of every call, where one gets all of
-- them. several: whether there are several applications. tls: whether a replica has TLS; the same in a pool, which has
-- the pools of each kind of its replicas, by their `tls`, in `kinds` if it has both.
local function new_view(document)
    return {
        document = document, replicas = {}, by_key = {}, pools = {}, applications = {}, services = {}, several = false,
    }
end

local view = new_view({ version = "", routes = {}, changed = 0, updated = 0 })
view.default, view.only = NOBODY, NOBODY

local function take_replica(entry)
    -- metrics.lua reads its two parts as labels.
    local key = entry.application .. "\t" .. entry.address .. ":" .. entry.port
    local replica, tls = view.by_key[key], entry.tls == true
    -- A call has chosen between TLS and clear text before its replica, which must not change meanwhile.
    if not replica or replica.tls ~= tls then
        replica = {
            key = key, application = entry.application, address = entry.address, port = entry.port, tls = tls,
            calls = inflight.new(),
            -- In the form of set_current_peer.
            host = entry.address:find(":", 1, true) and "[" .. entry.address .. "]" or entry.address,
            -- For tcp.response().
            connection = { address = tcp.parse_address(entry.address), port = entry.port },
        }
    end
    replica.weight, replica.state, replica.since = entry.weight, entry.state, entry.since
    replica.serves, replica.may_serve = entry.serves, entry.may_serve
    return replica
end

-- Each worker begins at another place of the rotation, because otherwise all would send their first calls to the same
-- replica.
local function start_rotation(pool, old)
    local count, worker, workers = #pool.replicas, ngx.worker.id(), ngx.worker.count()
    pool.position = (old and old.position or math.floor(worker * count / workers)) % math.max(count, 1)
    local before = {}
    if old and old.weighted then
        for index, replica in ipairs(old.replicas) do
            -- In proportion to the weights, because after large ones the shares would otherwise be wrong for long.
            before[replica.key] = old.current[index] * pool.weight / old.weight
        end
    end
    pool.current = {}
    -- About the place of smooth weighted round robin (picker.lua) after `calls` calls of a whole turn; `had` of them
    -- have gone to the replicas before this one.
    local calls, weight, had = math.floor(worker * pool.weight / workers), 0, 0
    for index, replica in ipairs(pool.replicas) do
        weight = weight + replica.weight
        local due = math.floor(calls * weight / pool.weight + 0.5)
        pool.current[index] = before[replica.key] or calls * replica.weight - (due - had) * pool.weight
        had = due
    end
end

local function new_pool(name, replicas, calls, old)
    local pool = { name = name, replicas = replicas, weight = 0, weighted = false, calls = calls }
    for _, replica in ipairs(replicas) do
        pool.weight = pool.weight + replica.weight
        pool.weighted = pool.weighted or replica.weight ~= replicas[1].weight
    end
    start_rotation(pool, old)
    return pool
end

local function take_pool(entry, replicas, calls)
    local members, kinds = {}, { [true] = {}, [false] = {} }
    for index, number in ipairs(entry.replicas) do
        local replica = replicas[number]
        members[index] = replica
        local kind = kinds[replica.tls]
        kind[#kind + 1] = replica
    end
    -- The pools of an application share replicas, so they count calls in flight together.
    local old = view.pools[entry.name]
    local counted = calls[entry.application] or old and old.calls or inflight.new()
    calls[entry.application] = counted
    local pool = new_pool(entry.name, members, counted, old)
    pool.tls = #kinds[true] > 0
    if pool.tls and #kinds[false] > 0 then
        pool.kinds = { [true] = new_pool("", kinds[true], counted), [false] = new_pool("", kinds[false], counted) }
        pool.kinds[true].tls = true
    end
    return pool
end

local function build(document)
    local new = new_view(document)
    for index, entry in ipairs(document.replicas) do
        local replica = take_replica(entry)
        new.replicas[index] = replica
        new.by_key[replica.key] = replica
        new.tls = new.tls or replica.tls
    end
    local pools, calls = {}, {}
    for index, entry in ipairs(document.pools) do
        pools[index] = take_pool(entry, new.replicas, calls)
        new.pools[entry.name] = pools[index]
    end
    local elsewhere = false
    -- A document has 0 for NOBODY.
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

-- The view without a look for a later document: init_by_lua has no worker to build one for.
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
