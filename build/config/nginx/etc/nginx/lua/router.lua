-- The pool of a call, by its path.

local _M = {}

-- So many paths of so many bytes are remembered with their pools. Callers choose them.
local MAX_PATHS, MAX_PATH_BYTES = 4096, 200

local paths, count, view = {}, 0, nil

-- The pool of a call in a view of fleet.lua; nil when no application has its service. `application` is the one that
-- the caller names for services that every application has, such as reflection, or nil.
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
