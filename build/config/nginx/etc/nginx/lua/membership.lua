-- Which replicas there are. One worker, the keeper, turns what consul-template renders into the list that all
-- workers balance over, and keeps it on disk.
--
-- A peer that leaves the rendered list is gone, at once, if the catalogue can vouch for it. It can't when the
-- servers have come back without their data: they answer 200 with no service. The sign of it is another cluster ID,
-- or an index that went backwards. Then the peers that are absent are held while they answer, until they are back
-- in the catalogue or stop answering.

local aside = require("aside")
local catalogue = require("catalogue")
local cidr = require("cidr")
local peers = require("peers")
local probe = require("probe")
local routes = require("routes")

local _M = {}

local ROOT = ngx.config.prefix() .. "../../"
local RENDERED = ROOT .. "run/peers"
local KEPT = ROOT .. "var/lib/load-balancer/peers"
-- What is left of the delay from "passing" to "served" besides consul-template's few milliseconds.
local READ_SECONDS = 0.02
-- Every peer is asked so often, one that is held or set aside more often, and of many peers so many a second in all.
local PROBE_SECONDS, PROBE_AGAIN_SECONDS, PROBES_A_SECOND = 0.5, 0.2, 200
local PROBE_TICK_SECONDS, PROBE_TIMEOUT_MS = 0.05, 500
-- A held peer that is loaded may miss a probe.
local PROBES_MISSED = 3
-- Gossip takes less to find that a host is dead, and its replicas leave the catalogue. A peer that can't be told from
-- another that has its address by now waits so long.
local GOSSIP_SECONDS = 10
-- How often the catalogue is asked who it is, besides each time that a peer leaves.
local CATALOGUE_SECONDS = 1
-- How long a catalogue that has lost its data may be incomplete: agents register again within 34 s, and
-- consul-template sees it up to block_query_wait later.
local HOLD_SECONDS = 60
local ASK_AGAIN_SECONDS = 0.2
local ROUTES_SECONDS = 60
local PRIVATE = "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16"

local shared = ngx.shared.membership
local networks
-- Of the keeper alone. probes has, by key: when the peer is asked next, how often in a row it has not answered, and
-- when nobody was there first.
local list, rendered_text, ask_again_at, probes = {}, nil, nil, {}

local function read(path)
    local file, err = io.open(path, "rb")
    if not file then
        return nil, err
    end
    local text = file:read("*a")
    file:close()
    return text
end

-- By rename, so that a reader never sees half a list and a full disk leaves the old one.
local function keep(text)
    local file, err = io.open(KEPT .. ".new", "wb")
    local ok = file
    if file then
        ok, err = file:write(text)
        local closed, close_err = file:close()
        ok, err = ok and closed, err or close_err
    end
    if ok then
        ok, err = os.rename(KEPT .. ".new", KEPT)
    end
    if not ok then
        ngx.log(ngx.WARN, "the list of peers can't be kept on disk, a restart would not know it: ", err)
    end
end

local function save()
    keep(string.format("# cluster %s index %d lost_until %d\n%s\n", shared:get("cluster") or "",
        shared:get("index") or 0, shared:get("lost_until") or 0, shared:get("routes")) .. shared:get("list"))
end

local function by_key(all)
    local index = {}
    for _, peer in ipairs(all) do
        index[peer.key] = peer
    end
    return index
end

local function publish(new, why)
    local text = peers.format(new)
    local present, gone = by_key(new), {}
    for _, peer in ipairs(list) do
        if not present[peer.key] then
            gone[#gone + 1] = peer.key
            probes[peer.key] = nil
        end
    end
    list = new
    if text == shared:get("list") then
        return
    end
    shared:set("list", text)
    shared:set("routes", routes.update(list, ngx.time()))
    shared:set("updated", ngx.now())
    shared:incr("version", 1, 0)
    -- Only now: the other way round a worker could see that a peer is no longer set aside before it sees that it is gone,
    -- and send a call to whoever has its address by then.
    for _, key in ipairs(gone) do
        aside.forget(key)
    end
    save()
    local names = {}
    for _, peer in ipairs(new) do
        names[#names + 1] = peer.key .. (peer.held and " (held)" or "")
    end
    ngx.log(ngx.NOTICE, why, ", peers=", #new, " ", table.concat(names, ", ", 1, math.min(#names, 20)))
end

-- Asks the catalogue who it is; true unless it has lost its data, now or within HOLD_SECONDS. nil and the reason when
-- it can't be asked.
local function whole()
    local now, err = catalogue.state()
    if not now then
        return nil, err
    end
    local cluster, index = shared:get("cluster"), shared:get("index")
    if (cluster and cluster ~= "" and now.cluster ~= cluster) or (index and now.index < index) then
        shared:set("lost_until", ngx.time() + HOLD_SECONDS)
        ngx.log(ngx.WARN, "the catalogue has lost its data: cluster=", now.cluster, " index=", now.index, " after ",
            cluster, " ", index)
    end
    shared:set("index", now.index)
    if now.cluster ~= cluster then
        shared:set("cluster", now.cluster)
        save()
    end
    return ngx.time() >= (shared:get("lost_until") or 0)
end

-- Takes the rendered list: what is in it is served at once, what is no longer in it goes as the catalogue vouches.
local function take(rendered)
    local present, absent = by_key(rendered), {}
    for _, peer in ipairs(list) do
        if not present[peer.key] then
            absent[#absent + 1] = peer
        end
    end
    local new = { unpack(rendered) }
    for _, peer in ipairs(absent) do
        new[#new + 1] = peer
    end
    publish(new, "rendered")
    if #absent == 0 then
        return true
    end
    local vouched, err = whole()
    if vouched == nil then
        return false, err
    end
    new = { unpack(rendered) }
    for _, peer in ipairs(absent) do
        if peer.held or not vouched then
            if not peer.held then
                ngx.log(ngx.WARN, "the catalogue has lost its data, holding peer=", peer.key)
            end
            peer.held = true
            new[#new + 1] = peer
        end
    end
    publish(new, vouched and "removed" or "held")
    return true
end

local function read_rendered()
    local text = read(RENDERED)
    if not text or (text == rendered_text and not (ask_again_at and ngx.now() >= ask_again_at)) then
        return
    end
    local rendered, refused = peers.parse(text, networks)
    if not rendered then
        return
    end
    if text ~= rendered_text then
        for _, reason in ipairs(refused) do
            ngx.log(ngx.WARN, "refused a peer: ", reason)
        end
    end
    local done, err = take(rendered)
    if not done and not ask_again_at then
        ngx.log(ngx.WARN, "the catalogue can't be asked about absent peers, keeping them: ", err)
    end
    rendered_text = text
    ask_again_at = not done and ngx.now() + ASK_AGAIN_SECONDS or nil
end

-- A held peer leaves when it stops answering; the list may have changed while it was asked.
local function drop_held(key)
    local kept = {}
    for _, peer in ipairs(list) do
        if not (peer.held and peer.key == key) then
            kept[#kept + 1] = peer
        end
    end
    publish(kept, "a held peer stopped answering")
end

local function ask(premature, peer, record)
    if premature then
        return
    end
    local answer = probe.ask(peer, PROBE_TIMEOUT_MS)
    local now = ngx.now()
    record.running = false
    if probes[peer.key] ~= record then
        return -- It has left the list meanwhile.
    end
    if answer == "serving" then
        record.misses = 0
        if not record.gone_at or now >= record.gone_at + GOSSIP_SECONDS then
            record.gone_at = nil
            aside.bring_back(peer)
        end
    else
        record.misses = record.misses + 1
        aside.put(peer, answer)
        if peer.health == "" and answer ~= "silent" then
            record.gone_at = now
        end
        if peer.held and record.misses >= PROBES_MISSED then
            return drop_held(peer.key)
        end
    end
    record.due = now + PROBE_AGAIN_SECONDS
end

-- Starts the probes that are due. An answer that takes its time delays no other.
local function start_probes()
    aside.refresh()
    local now = ngx.now()
    local steady = math.max(PROBE_SECONDS, #list / PROBES_A_SECOND)
    local left = math.ceil(PROBES_A_SECOND * PROBE_TICK_SECONDS)
    for _, peer in ipairs(list) do
        local record = probes[peer.key]
        if not record then
            -- Not all at the same moment.
            record = { due = now + math.random() * PROBE_AGAIN_SECONDS, misses = 0, running = false }
            probes[peer.key] = record
        end
        local urgent = peer.held or aside.reason(peer)
        if not record.running and now >= record.due + (urgent and 0 or steady - PROBE_AGAIN_SECONDS) then
            left = left - 1
            if left < 0 or not ngx.timer.at(0, ask, peer, record) then
                return
            end
            record.running = true
        end
    end
end

-- Runs `look` for ever, one after the other, every so many seconds; an error in it is logged, not the end of it.
local function every(seconds, look)
    local function run(premature)
        if premature then
            return
        end
        local ok, err = pcall(look)
        if not ok then
            ngx.log(ngx.ERR, err)
        end
        ngx.timer.at(seconds, run)
    end
    ngx.timer.at(0, run)
end

-- Forgets the services that nobody has had for long.
local function update_routes()
    local text = routes.update(list, ngx.time())
    if text ~= shared:get("routes") then
        shared:set("routes", text)
        shared:incr("version", 1, 0)
    end
end

function _M.init()
    local text = os.getenv("PEER_CIDR") or PRIVATE
    local wrong
    networks, wrong = cidr.parse(text)
    if not networks then
        error("PEER_CIDR: " .. wrong .. " is no IPv4 network such as 10.0.0.0/8")
    end
    -- A reload keeps the shared list; a start takes the kept one until Consul has spoken.
    if not shared:get("list") then
        local kept = read(KEPT) or "# end\n"
        local cluster, index, lost_until = kept:match("^# cluster ([%w.-]*) index (%d+) lost_until (%d+)\n")
        list = peers.parse(kept, networks) or {}
        shared:set("cluster", cluster)
        shared:set("index", tonumber(index))
        shared:set("lost_until", tonumber(lost_until))
        shared:set("list", peers.format(list))
        routes.restore(kept)
        shared:set("routes", routes.update(list, ngx.time()))
        shared:set("updated", ngx.now())
        shared:incr("version", 1, 0)
    end
end

function _M.init_worker()
    if ngx.worker.id() ~= 0 then
        return
    end
    list = peers.parse(shared:get("list"), networks) or {}
    routes.restore(shared:get("routes"))
    if os.getenv("NGINX_UPDATE") == "reload" or os.getenv("NGINX_UPDATE") == "restart" then
        ngx.timer.at(0, read_rendered)
    else
        every(READ_SECONDS, read_rendered)
    end
    every(PROBE_TICK_SECONDS, start_probes)
    every(CATALOGUE_SECONDS, whole)
    every(ROUTES_SECONDS, update_routes)
end

-- What consul-template has rendered, as JSON: the keys of the peers taken from it, and why others were refused. The
-- reasons are of printable characters, but for quotes and backslashes.
function _M.rendered()
    local rendered, refused = peers.parse(read(RENDERED) or "# end\n", networks)
    local keys, reasons = {}, {}
    for _, peer in ipairs(rendered or {}) do
        keys[#keys + 1] = '"' .. peer.key .. '"'
    end
    for _, reason in ipairs(refused or {}) do
        reasons[#reasons + 1] = '"' .. reason:gsub("[\\\"]", "\\%0"):gsub("%c", "\\t") .. '"'
    end
    ngx.say(string.format('{"peers":[%s],"refused":[%s]}', table.concat(keys, ","), table.concat(reasons, ",")))
end

function _M.networks()
    return networks
end

return _M
