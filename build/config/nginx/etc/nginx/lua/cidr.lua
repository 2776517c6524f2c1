-- Networks in CIDR notation, IPv4.

local bit = require("bit")

local _M = {}

local function number(address)
    local a, b, c, d = address:match("^(%d+)%.(%d+)%.(%d+)%.(%d+)$")
    a, b, c, d = tonumber(a), tonumber(b), tonumber(c), tonumber(d)
    if not a or a > 255 or b > 255 or c > 255 or d > 255 then
        return nil
    end
    return bit.bor(bit.lshift(a, 24), bit.lshift(b, 16), bit.lshift(c, 8), d)
end

_M.number = number

-- A list such as "10.0.0.0/8,192.168.0.0/16"; nil and the part that is no network.
function _M.parse(text)
    local networks = {}
    for part in text:gmatch("[^%s,]+") do
        local address, length = part:match("^([%d.]+)/(%d+)$")
        local value = address and number(address)
        length = tonumber(length)
        if not value or length > 32 then
            return nil, part
        end
        -- A shift by 32 is one by 0 in LuaJIT.
        local mask = length == 0 and 0 or bit.lshift(-1, 32 - length)
        networks[#networks + 1] = { value = bit.band(value, mask), mask = mask }
    end
    return networks
end

function _M.contains(networks, address)
    local value = number(address)
    if not value then
        return false
    end
    for _, network in ipairs(networks) do
        if bit.band(value, network.mask) == network.value then
            return true
        end
    end
    return false
end

return _M
