-- Addresses with more connections than LB_MAX_CONNECTIONS_PER_ADDRESS allows: nothing new of theirs is accepted. The
-- control plane counts (balancer/connections.py). Without the variable nothing of this file runs.

local balancer = require("balancer")
local ssl = require("ngx.ssl")
local tcp = require("tcp")

local _M = {}

-- How an IPv6 address begins that stands for an IPv4 address on a socket of both families (RFC 4291, 2.5.5.2).
local MAPPED = ("\0"):rep(10) .. "\255\255"

-- The addresses of a document, in the form of $binary_remote_addr.
local document, crowded = nil, {}

local function is_crowded(address)
    local latest = balancer.document()
    if latest ~= document then
        document, crowded = latest, {}
        for _, text in ipairs(latest.crowded or {}) do
            local parsed = tcp.parse_address(text)
            if parsed then
                crowded[parsed.bytes] = true
            end
        end
    end
    if #address == 16 and address:sub(1, 12) == MAPPED then
        address = address:sub(13)
    end
    return crowded[address]
end

-- For ssl_certificate_by_lua: ends the handshake of a new connection.
function _M.refuse_connection()
    local address, kind = ssl.raw_client_addr()
    if address and kind ~= "unix" and is_crowded(address) then
        return ngx.exit(ngx.ERROR)
    end
end

-- For access_by_lua: ends a call as RESOURCE_EXHAUSTED.
function _M.refuse_call()
    if is_crowded(ngx.var.binary_remote_addr) then
        ngx.var.lb_exhausted_message = "too many connections from this address"
        return ngx.exit(429)
    end
end

return _M
