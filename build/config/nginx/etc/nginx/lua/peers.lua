-- The list of peers as text: what consul-template renders (peers.tpl), and what the balancer keeps of it.
-- Everybody who can reach Consul can put something into it, so nothing is taken that is not of the expected form.

local cidr = require("cidr")

local _M = {}

-- Consul's own ports are no replica's, whatever is registered: its API would be within reach of every caller.
local CONSUL_PORTS = {
    [8300] = true, [8301] = true, [8302] = true, [8500] = true, [8501] = true, [8502] = true, [8503] = true,
    [8600] = true,
}
-- What the shared dictionary has room for, twice (nginx.conf), and the services.
local MAX_PEERS, MAX_BYTES = 10000, 8 * 1024 * 1024
local LINE = '^"([%w_-]+)"\t"([%x.:]*)"\t(%d+)\t(%d+)\t"([%x.:]+)"\t"?([%w_.,]*)"?\t"?([%w_.]*)"?\t?(%l*)$'
-- What is asked of a peer's health service fits into one byte's length.
local MAX_HEALTH_BYTES = 120

local function parse_line(line, networks)
    local app, address, port, weight, node_address, services, health, state = line:match(LINE)
    if not app then
        return nil, "not of the expected form"
    end
    if address == "" then
        address = node_address
    end
    port, weight = tonumber(port), tonumber(weight)
    if port < 1 or port > 65535 or CONSUL_PORTS[port] then
        return nil, "port " .. port .. " is no replica's"
    end
    if weight > 65535 then
        return nil, "weight " .. weight .. " is above 65535"
    end
    if address ~= node_address and not cidr.contains(networks, address) then
        return nil, address .. " is neither its node's address nor in PEER_CIDR"
    end
    if not cidr.number(address) and not address:find(":", 1, true) then
        return nil, address .. " is no IP address"
    end
    -- No such metadata.
    services = services == "null" and "" or services
    health = health == "null" and "" or health
    if #health > MAX_HEALTH_BYTES then
        return nil, "grpc_health is longer than " .. MAX_HEALTH_BYTES .. " characters"
    end
    return {
        app = app, address = address, port = port, weight = weight, node_address = node_address,
        services = services, health = health, held = state == "held", key = app .. " " .. address .. ":" .. port,
    }
end

-- The peers of a text, and the lines that were refused with their reasons; nil when the text is not whole.
function _M.parse(text, networks)
    if text:sub(-6) ~= "# end\n" then
        return nil
    end
    local list, seen, refused, bytes = {}, {}, {}, 0
    for line in text:gmatch("[^\n]+") do
        if line:sub(1, 1) ~= "#" then
            local peer, reason = parse_line(line, networks)
            bytes = bytes + #line + #" held"
            if peer and (#list == MAX_PEERS or bytes > MAX_BYTES) then
                peer, reason = nil, "more than " .. MAX_PEERS .. " peers, or than " .. MAX_BYTES .. " bytes of them"
            end
            if not peer then
                refused[#refused + 1] = reason .. ": " .. line:sub(1, 200):gsub("[^%w%p ]", "?")
            elseif peer.weight > 0 and not seen[peer.key] then
                seen[peer.key] = true
                list[#list + 1] = peer
            end
        end
    end
    return list, refused
end

-- The text of a list; the same form, with "held" behind a peer that only the balancer still knows.
function _M.format(list)
    local lines = {}
    for _, peer in ipairs(list) do
        lines[#lines + 1] = string.format('"%s"\t"%s"\t%d\t%d\t"%s"\t"%s"\t"%s"\t%s', peer.app, peer.address,
            peer.port, peer.weight, peer.node_address, peer.services, peer.health, peer.held and "held" or "")
    end
    lines[#lines + 1] = "# end\n"
    return table.concat(lines, "\n")
end

return _M
