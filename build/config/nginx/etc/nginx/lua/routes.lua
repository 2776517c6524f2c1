-- Which application gets the calls of which gRPC service. The keeper decides (see membership.lua), all workers read.
--
-- The application that had a service first keeps it for as long as one of its replicas has it: nobody takes the calls of
-- a service away by registering it. A service that no replica has any more is remembered for ten minutes, so that its
-- calls are UNAVAILABLE, which clients try again, and not UNIMPLEMENTED.

local _M = {}

local REMEMBER_SECONDS = 600
local MAX_SERVICES, MAX_OTHERS = 5000, 10

-- Of the keeper alone: by service, the application, when a replica had it last, and the others that have it as well.
local owners, owner_count = {}, 0

-- By service, the applications that have it, in the order of the list.
local function claims_of(list)
    local claims = {}
    for _, peer in ipairs(list) do
        for service in peer.services:gmatch("[^,]+") do
            local claim = claims[service] or { names = {}, has = {} }
            claims[service] = claim
            if not claim.has[peer.app] then
                claim.has[peer.app] = true
                claim.names[#claim.names + 1] = peer.app
            end
        end
    end
    return claims
end

local function others(claim, app)
    local names = {}
    for _, name in ipairs(claim.names) do
        if name ~= app then
            names[#names + 1] = name
        end
    end
    table.sort(names)
    return table.concat(names, ",", 1, math.min(#names, MAX_OTHERS))
end

local function assign(service, claim, now)
    local owner = owners[service]
    if not owner then
        if owner_count >= MAX_SERVICES then
            ngx.log(ngx.WARN, "more than ", MAX_SERVICES, " gRPC services, no calls for service=", service)
            return
        end
        owner = { app = claim.names[1], others = "" }
        owners[service] = owner
        owner_count = owner_count + 1
    elseif not claim.has[owner.app] then
        ngx.log(ngx.NOTICE, "service=", service, " goes to app=", claim.names[1], ", app=", owner.app,
            " has no replica of it")
        owner.app = claim.names[1]
    end
    local rest = others(claim, owner.app)
    if rest ~= "" and rest ~= owner.others then
        ngx.log(ngx.WARN, "service=", service, " is also registered by ", rest, "; its calls stay with app=", owner.app)
    end
    owner.others = rest
    owner.seen = now
end

-- Takes over a list of peers; the result is for read().
function _M.update(list, now)
    local claims = claims_of(list)
    for service, claim in pairs(claims) do
        assign(service, claim, now)
    end
    local lines = {}
    for service, owner in pairs(owners) do
        if not claims[service] then
            owner.others = ""
        end
        if claims[service] or now < owner.seen + REMEMBER_SECONDS then
            lines[#lines + 1] = string.format("# route %s %s %d %s", service, owner.app,
                claims[service] and 0 or owner.seen, owner.others)
        else
            owners[service] = nil
            owner_count = owner_count - 1
        end
    end
    table.sort(lines)
    return table.concat(lines, "\n")
end

-- By service, the application, the others that have it as well, and when a replica had it last: 0 is now.
function _M.read(text)
    local routes = {}
    for service, app, seen, rest in (text or ""):gmatch("# route ([%w_.]+) ([%w_-]+) (%d+) ([%w_,-]*)") do
        routes[service] = { app = app, seen = tonumber(seen), others = rest }
    end
    return routes
end

-- What is known from before; for the keeper, once.
function _M.restore(text)
    owners, owner_count = _M.read(text), 0
    for _, owner in pairs(owners) do
        owner.seen = owner.seen > 0 and owner.seen or ngx.time()
        owner_count = owner_count + 1
    end
end

return _M
