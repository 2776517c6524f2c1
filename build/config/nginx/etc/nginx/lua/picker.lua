-- Picks a replica of a pool.

local ejection = require("ejection")
local inflight = require("inflight")

local _M = {}

-- A replica may have SHARE times its share of the calls in flight, and LEAST_SHARE calls in any case. This bounds the
-- calls to a replica that has stopped answering until a health probe ejects it, and to a slow one. Few calls at once
-- are shared evenly, also with a replica that is slow because it has just started.
local SHARE, LEAST_SHARE = 1.25, 8

-- Smooth weighted round robin, as in nginx: the shares follow the weights over any stretch of calls.
local function pick_weighted(pool, usable, tried, now, most)
    local best, total = nil, 0
    for index, replica in ipairs(pool.replicas) do
        if usable(replica, tried, now, most) then
            local current = pool.current[index] + replica.weight
            pool.current[index] = current
            total = total + replica.weight
            if not best or current > pool.current[best] then
                best = index
            end
        end
    end
    if not best then
        return nil
    end
    pool.current[best] = pool.current[best] - total
    return pool.replicas[best]
end

local function pick_equal(pool, usable, tried, now, most)
    local count = #pool.replicas
    for _ = 1, count do
        local index = pool.position + 1
        pool.position = index % count
        local replica = pool.replicas[index]
        if usable(replica, tried, now, most) then
            return replica
        end
    end
    return nil
end

local function untried(replica, tried)
    return not (tried and tried[replica.key])
end

local function serves(replica, tried, now)
    return replica.serves and untried(replica, tried) and not ejection.is_ejected(replica, now)
end

local function serves_within_share(replica, tried, now, most)
    local calls = inflight.count(replica.calls)
    return (calls < LEAST_SHARE or calls < most * replica.weight) and serves(replica, tried, now)
end

local function may_serve(replica, tried)
    return replica.may_serve and untried(replica, tried)
end

-- Returns a replica of the pool that is not in `tried`, a set of keys, or nil. `now` is of clock.now().
function _M.pick(pool, tried, now)
    if #pool.replicas == 0 then
        return nil
    end
    local choose = pool.weighted and pick_weighted or pick_equal
    local most = SHARE * (inflight.count(pool.calls) + 1) / pool.weight
    -- Where all are ejected, the replicas that may serve are tried.
    return choose(pool, serves_within_share, tried, now, most) or choose(pool, serves, tried, now)
        or choose(pool, may_serve, tried, now)
end

return _M
