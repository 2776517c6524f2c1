-- Counts calls for Prometheus, and finds a call's gRPC status, for the access log too.
--
-- Each worker counts by itself and adds its counts to the shared dictionary once a second, so that calls take no lock.
-- Keys of the dictionary have a letter and labels, with tabs between: c counter, h histogram, f calls in flight, l last
-- call.

local outcome = require("outcome")

local port = os.getenv("METRICS_PORT") or ""
local _M = {
    -- METRICS_PORT and LB_ACCESS_LOG as load-balancer.tpl reads them.
    counts = port ~= "" and port ~= "0",
    logs = os.getenv("LB_ACCESS_LOG") ~= "off",
}

local FLUSH_SECONDS = 1
-- How long the time of a replica's last call is kept.
local LAST_CALL_SECONDS = 86400
-- Upper bounds in seconds: prometheus_client's, so that the balancer's and the servers' can be compared.
local BOUNDS = { 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10 }
-- Callers choose paths, so methods beyond this number, and those that no replica has, are counted as OTHER.
local MAX_METHODS = 500
local OTHER, GONE = "other\tother", "gone"

-- The names of go-grpc-prometheus.
local NAMES = {
    [0] = "OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists",
    "PermissionDenied", "ResourceExhausted", "FailedPrecondition", "Aborted", "OutOfRange", "Unimplemented", "Internal",
    "Unavailable", "DataLoss", "Unauthenticated",
}
local CANCELED, UNKNOWN, DEADLINE_EXCEEDED, INTERNAL = NAMES[1], NAMES[2], NAMES[4], NAMES[13]

local dict = ngx.shared.metrics
-- methods: by path, the labels of its service and method. series: by those, the histogram, and counters by replica and
-- status. changed: the counters and histograms that flush() has to add to the dictionary.
local methods, method_count = {}, 0
local series, changed, changed_count = {}, {}, 0
-- Whether this worker ends: it finishes its calls without timers.
local exiting = false

-- A call without a status ended because its client or its replica disconnected during the answer.
local function without_status(seconds)
    if ngx.status ~= 200 and ngx.status ~= 499 then
        -- By gRPC's "HTTP to gRPC Status Code Mapping".
        return ngx.status == 400 and INTERNAL or UNKNOWN
    end
    return outcome.deadline_passed(seconds) and DEADLINE_EXCEEDED or CANCELED
end

-- The status is in the trailers, or in the header of an answer without trailers, such as the balancer's own.
local function code_of(seconds)
    local number = ngx.var.upstream_trailer_grpc_status or ngx.var.sent_http_grpc_status
    if not number then
        return without_status(seconds)
    end
    return NAMES[tonumber(number)] or UNKNOWN
end

local NO_REPLICA = "\t"

local function method_of()
    local path = ngx.var.uri or "" -- Some requests are refused before nginx has read their path.
    local found = methods[path]
    if found then
        return found
    end
    local service, method = path:match("^/([%w_.]+)/([%w_]+)$")
    if service and #path <= 200 and method_count < MAX_METHODS then
        -- The replica's status, if it has answered: 12 (UNIMPLEMENTED) for a method that it does not have.
        local status = ngx.var.upstream_trailer_grpc_status or ngx.var.upstream_http_grpc_status
        if status and status ~= "12" then
            found = service .. "\t" .. method
            methods[path] = found
            method_count = method_count + 1
        end
    end
    return found or OTHER
end

local function mark(entry)
    if entry.count == 0 then
        changed_count = changed_count + 1
        changed[changed_count] = entry
    end
    entry.count = entry.count + 1
end

local function count(code, seconds, replica)
    local labels = replica and replica.key or NO_REPLICA
    local method = method_of()
    local of_method = series[method]
    if not of_method then
        of_method = { counters = {}, seconds = { key = "h\t" .. method, sum = 0, count = 0, buckets = {} } }
        series[method] = of_method
    end
    local of_replica = of_method.counters[labels]
    if not of_replica then
        of_replica = {}
        of_method.counters[labels] = of_replica
    end
    local counter = of_replica[code]
    if not counter then
        counter = {
            key = "c\t" .. method .. "\t" .. labels .. "\t" .. code, count = 0, replica = replica, code = code,
        }
        of_replica[code] = counter
    end
    mark(counter)
    local histogram = of_method.seconds
    mark(histogram)
    histogram.sum = histogram.sum + seconds
    local index = 1
    while BOUNDS[index] and seconds > BOUNDS[index] do
        index = index + 1
    end
    histogram.buckets[index] = (histogram.buckets[index] or 0) + 1
end

local function add(key, value)
    local _, err, evicted = dict:incr(key, value, 0)
    if err or evicted then
        ngx.log(ngx.WARN, "the dictionary of the metrics is full: ", err or "counts are lost")
    end
end

local function flush()
    for number = 1, changed_count do
        local entry = changed[number]
        add(entry.key, entry.count)
        entry.count = 0
        if entry.replica then
            dict:set("l\t" .. entry.replica.key, ngx.now() .. " " .. entry.code, LAST_CALL_SECONDS)
        end
        if entry.buckets then
            add(entry.key .. "\tsum", entry.sum)
            entry.sum = 0
            for index, value in pairs(entry.buckets) do
                add(entry.key .. "\t" .. index, value)
            end
            entry.buckets = {}
        end
    end
    changed, changed_count = {}, 0
end

-- For log_by_lua: counts a call that has ended after `seconds`; `replica` is nil where it was sent to none.
function _M.record(replica, seconds)
    local code = code_of(seconds)
    if _M.logs then
        ngx.var.lb_grpc_code = code
    end
    if _M.counts then
        count(code, seconds, replica)
        if exiting then
            flush()
        end
    end
end

-- Forgets the series of replicas that have left.
function _M.forget()
    flush()
    series = {}
end

-- Returns when a replica's last call ended, in seconds since 1970 and within a second, and its status; 0 and "" where
-- that is unknown.
function _M.last_call(replica)
    local time, code = (dict:get("l\t" .. replica.key) or ""):match("^([%d.]+) (%a+)$")
    return tonumber(time) or 0, code or ""
end

-- Stores calls in flight by replica; the entries expire soon after the worker's end.
local function store_in_flight(replicas)
    local prefix = "f\t" .. ngx.worker.pid() .. "\t"
    for _, replica in ipairs(replicas()) do
        dict:set(prefix .. replica.key, replica.calls.open, 5 * FLUSH_SECONDS)
    end
end

-- Starts the timer; `replicas` returns all replicas.
function _M.init_worker(replicas)
    if not _M.counts then
        return
    end
    local function run(premature)
        flush()
        if premature then
            exiting = true
            return
        end
        local ok, err = pcall(store_in_flight, replicas)
        if not ok then
            ngx.log(ngx.ERR, err)
        end
        ngx.timer.at(FLUSH_SECONDS, run)
    end
    ngx.timer.at(FLUSH_SECONDS, run)
end

-- Reads the dictionary: counters, histograms and calls in flight by their labels. The counters of replicas that have
-- left are added up under GONE.
local function collect(present)
    local counters, histograms, in_flight, moved = {}, {}, {}, {}
    for _, key in ipairs(dict:get_keys(0)) do
        local kind, rest = key:match("^(%l)\t(.*)$")
        local value = dict:get(key)
        if value and kind == "c" then
            local method, app, replica, code = rest:match("^([^\t]+\t[^\t]+)\t([^\t]*)\t([^\t]*)\t(%a+)$")
            local gone = replica ~= "" and replica ~= GONE and not present[app .. "\t" .. replica]
            local labels = method .. "\t" .. app .. "\t" .. (gone and GONE or replica) .. "\t" .. code
            moved[key] = gone and "c\t" .. labels or nil
            counters[labels] = (counters[labels] or 0) + value
        elseif value and kind == "h" then
            local method, part = rest:match("^([^\t]+\t[^\t]+)\t?(.*)$")
            histograms[method] = histograms[method] or {}
            histograms[method][part] = value
        elseif value and kind == "f" then
            local labels = rest:match("^%d+\t(.*)$")
            if present[labels] then
                in_flight[labels] = (in_flight[labels] or 0) + value
            end
        end
    end
    -- Moves them in the dictionary too, after all are read and by one worker at a time.
    if next(moved) and dict:add("moving", true, 1) then
        for from, to in pairs(moved) do
            local value = dict:get(from)
            if value then
                dict:delete(from)
                dict:incr(to, value, 0)
            end
        end
        dict:delete("moving")
    end
    return counters, histograms, in_flight
end

local function sorted(values)
    local keys = {}
    for key in pairs(values) do
        keys[#keys + 1] = key
    end
    table.sort(keys)
    return keys
end

-- Labels in Prometheus' text format: a key has their values, with tabs between.
local function labelled(key, names)
    local index = 0
    return ((key .. "\t"):gsub("([^\t]*)\t", function(value)
        index = index + 1
        return (index > 1 and "," or "") .. names[index] .. '="' .. value .. '"'
    end))
end

local function say_head(name, kind, help)
    ngx.say("# HELP ", name, " ", help, "\n# TYPE ", name, " ", kind)
end

local function say_family(name, kind, help, labels, values)
    say_head(name, kind, help)
    for _, key in ipairs(sorted(values)) do
        ngx.say(name, "{", labelled(key, labels), "} ", values[key])
    end
end

local function say_histograms(histograms)
    say_head("grpc_lb_handling_seconds", "histogram", "Time from a call's header to its end.")
    for _, key in ipairs(sorted(histograms)) do
        local found = histograms[key]
        local labels = labelled(key, { "grpc_service", "grpc_method" })
        local total = 0
        for index = 1, #BOUNDS + 1 do
            total = total + (found[tostring(index)] or 0)
            ngx.say("grpc_lb_handling_seconds_bucket{", labels, ',le="', BOUNDS[index] or "+Inf", '"} ', total)
        end
        ngx.say(string.format("grpc_lb_handling_seconds_sum{%s} %.6f", labels, found.sum or 0))
        ngx.say("grpc_lb_handling_seconds_count{", labels, "} ", total)
    end
end

-- Answers /metrics in Prometheus' text format. `age_seconds`: since the last change of the replicas.
function _M.say(replicas, state_of, age_seconds, document)
    flush()
    local present, states = {}, {}
    for _, replica in ipairs(replicas) do
        present[replica.key] = true
        local labels = replica.application .. "\t" .. state_of(replica)
        states[labels] = (states[labels] or 0) + 1
        -- An application without a serving replica has a 0, because the alert NoReplica needs it.
        local serving = replica.application .. "\tserving"
        states[serving] = states[serving] or 0
    end
    local counters, histograms, in_flight = collect(present)
    say_family("grpc_lb_handled_total", "counter", "Calls that have ended, by status.",
        { "grpc_service", "grpc_method", "application", "replica", "grpc_code" }, counters)
    say_histograms(histograms)
    say_family("grpc_lb_in_flight", "gauge", "Calls that have a replica and have not ended.",
        { "application", "replica" }, in_flight)
    say_family("grpc_lb_replicas", "gauge", "Replicas by state.", { "application", "state" }, states)
    say_family("grpc_lb_certificate_expiration_timestamp_seconds", "gauge",
        "The end of a certificate's validity, in seconds since 1970.", { "variable" }, document.certificates or {})
    say_head("grpc_lb_catalogue_access", "gauge", "1 while Consul answers the balancer in full, 0 without the rights.")
    ngx.say("grpc_lb_catalogue_access ", ((document.catalogue or {}).access or "") == "" and 1 or 0)
    say_head("grpc_lb_crowded_addresses", "gauge", "Client addresses that are refused for too many connections.")
    ngx.say("grpc_lb_crowded_addresses ", #(document.crowded or {}))
    if document.xds then
        say_head("grpc_lb_xds_clients", "gauge", "Clients that have their replicas from the control plane.")
        ngx.say("grpc_lb_xds_clients ", document.xds.clients)
        say_head("grpc_lb_xds_refusing_clients", "gauge", "Those of them whose latest response they have refused.")
        ngx.say("grpc_lb_xds_refusing_clients ", document.xds.refusing)
        say_head("grpc_lb_xds_refused_total", "counter", "Responses that were refused.")
        ngx.say("grpc_lb_xds_refused_total ", document.xds.refused)
    end
    say_head("grpc_lb_last_update_age_seconds", "gauge", "Time since the list of replicas last changed.")
    ngx.say(string.format("grpc_lb_last_update_age_seconds %.3f", math.max(age_seconds, 0)))
end

return _M
