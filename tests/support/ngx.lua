-- Stands in for nginx in unit tests of its Lua. `host` is a Worker of lua.py.

local host = ...

ngx = {
    WARN = "warn", ERR = "error", ERROR = -1,
    shared = { configuration = host:dictionary("configuration"), ejected = host:dictionary("ejected"),
        metrics = host:dictionary("metrics") },
    config = { prefix = function() return host.prefix end, nginx_configure = function() return "" end },
    worker = { id = function() return host.number end, count = function() return host.count end,
        pid = function() return 1000 + host.number end },
    now = function() return host.wall end,
    timer = { at = function() return true end },
    log = function(_, ...)
        local parts = { ... }
        for index = 1, select("#", ...) do
            parts[index] = tostring(parts[index])
        end
        host:note(table.concat(parts))
    end,
    req = { get_method = function() return host.method end, read_body = function() end,
        get_body_data = function() return host.body end },
    say = function(...) host:say(table.concat({ ... })) end,
    exit = function(status) ngx.status = status; return status end,
    var = {}, header = {}, status = 200,
}

package.preload["resty.core.base"] = function()
    return { get_request = function() return host.request end }
end
package.preload["ngx.semaphore"] = function()
    return { new = function() return { wait = function() end, post = function() end, count = function() return 0 end } end }
end
package.preload["ngx.balancer"] = function()
    return {
        set_current_peer = function(address, port) return host:connect(address, port) end,
        set_more_tries = function(count) host.more_tries = count end,
        set_timeouts = function() end,
    }
end
package.preload.cjson = function()
    local function decode(text)
        local value, err = host.decode(text)
        return err and error(err, 0) or value
    end
    return { decode = decode, encode = host.encode, array_mt = {} }
end

-- The clock stands still while a test sets a time.
local clock = require("clock")
local now = clock.now
function clock.now()
    return host.time or now()
end
