-- What the local Consul agent says of its cluster: whether the catalogue can vouch for a replica's absence.

local _M = {}

local TIMEOUT_MS = 500

local address = os.getenv("CONSUL_ADDRESS") or "127.0.0.1"
local port = tonumber(os.getenv("CONSUL_PORT")) or 8500

-- The X-Consul-Index of the catalogue's services, and the cluster's ID (the trust domain of its certificate
-- authority, made once when a cluster is bootstrapped; "" where Connect is off). nil and the reason when the
-- cluster has no leader or the agent is out of reach.
local function get(path)
    local socket = ngx.socket.tcp()
    socket:settimeouts(TIMEOUT_MS, TIMEOUT_MS, TIMEOUT_MS)
    local ok, err = socket:connect(address, port)
    if not ok then
        return nil, err
    end
    -- HTTP/1.0: the answer ends with the connection and comes in no chunks.
    socket:send("GET " .. path .. " HTTP/1.0\r\nHost: consul\r\n\r\n")
    local answer
    answer, err = socket:receive("*a")
    socket:close()
    if not answer then
        return nil, err
    end
    local status = answer:match("^HTTP/%d%.%d (%d+)")
    if status ~= "200" then
        return nil, "status " .. tostring(status)
    end
    return answer
end

function _M.state()
    local services, err = get("/v1/catalog/services")
    if not services then
        return nil, err
    end
    local index = tonumber(services:match("\r\n[Xx]%-[Cc]onsul%-[Ii]ndex: (%d+)\r\n"))
    if not index then
        return nil, "no X-Consul-Index"
    end
    local roots
    roots, err = get("/v1/connect/ca/roots")
    if not roots and err ~= "status 500" then
        return nil, err
    end
    return { index = index, cluster = roots and roots:match('"TrustDomain":%s*"([%w.-]+)"') or "" }
end

return _M
