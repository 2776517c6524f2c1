-- Finds the pool of a call by its path.

local _M = {}

-- Callers choose paths, so the cache of their pools is bounded.
local MAX_PATHS, MAX_PATH_BYTES = 4096, 200

local paths, count, view = {}, 0, nil

-- Returns the pool of a call in a view of fleet.lua; nil when no application has its service. `application`, which may
-- be nil, is the caller's choice for services that every application has, such as reflection.
function _M.route(current, path, application)
    if current.only then
        return current.only
    end
    if current ~= view then
        paths, count, view = {}, 0, current
    end
    local pool = paths[path]
    if pool then
        return pool
    end
    local service = path:match("^/([^/]+)/")
    pool = service and current.services[service]
    if not pool then
        return current.applications[application or ""] or current.default
    end
    if #path <= MAX_PATH_BYTES then
        if count >= MAX_PATHS then
            paths, count = {}, 0
        end
        paths[path] = pool
        count = count + 1
    end
    return pool
end

return _M
