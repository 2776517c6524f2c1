-- Receives the document: the control plane posts it to /configuration and keeps it on disk as the snapshot, from which
-- nginx starts. balancer/document.py describes it.

local cjson = require("cjson")

local _M = {}

local SNAPSHOT = ngx.config.prefix() .. "../../var/lib/load-balancer/snapshot.json"

local shared = ngx.shared.configuration
local DOCUMENT, VERSION, GENERATION = "document", "version", "generation"
-- The document that this worker has accepted and not yet read, so that it need not parse it again.
local accepted_text, accepted

local function parse(text)
    local ok, document = pcall(cjson.decode, text)
    if not ok then
        return nil, document
    end
    if type(document) ~= "table" or type(document.version) ~= "string" or type(document.replicas) ~= "table"
        or type(document.pools) ~= "table" or type(document.routes) ~= "table"
        or type(document.applications) ~= "table" then
        return nil, "a part of the document is missing"
    end
    return document
end

local function store(text, version)
    -- safe_set, because set would evict other keys to make room. safe_set frees the value that it replaces before it
    -- looks for room, so documents take turns in two places: one without room leaves the last one in its place.
    local generation = (shared:get(GENERATION) or 0) + 1
    local ok, err = shared:safe_set(DOCUMENT .. generation % 2, text)
    if not ok then
        return nil, "no room in the shared memory: " .. err
    end
    shared:safe_set(VERSION, version)
    shared:safe_set(GENERATION, generation)
    return true
end

-- For init_by_lua: reads the snapshot when nginx starts. After a reload the shared memory has the latest document.
function _M.init()
    if shared:get(GENERATION) then
        return
    end
    local file = io.open(SNAPSHOT, "rb")
    if not file then
        return
    end
    local text = file:read("*a")
    file:close()
    local document, err = parse(text)
    if document then
        local _
        _, err = store(text, document.version)
    end
    if err then
        ngx.log(ngx.WARN, "the snapshot is not used: ", err)
    end
end

-- The number of documents so far; nil before the first.
function _M.generation()
    return shared:get(GENERATION)
end

-- The latest document.
function _M.read()
    local text = shared:get(DOCUMENT .. shared:get(GENERATION) % 2)
    local document = text == accepted_text and accepted
    accepted_text, accepted = nil, nil
    if document then
        return document
    end
    return parse(text)
end

local function answer(status, fields)
    ngx.status = status
    ngx.say(cjson.encode(fields))
end

local function accept()
    ngx.req.read_body()
    local text = ngx.req.get_body_data()
    if not text then
        return answer(413, { error = "the document is too large for memory" })
    end
    local document, err = parse(text)
    if not document then
        return answer(400, { error = err })
    end
    local stored
    stored, err = store(text, document.version)
    if not stored then
        return answer(507, { error = err })
    end
    accepted_text, accepted = text, document
    answer(200, { version = document.version })
end

-- For content_by_lua: POST stores a document, GET answers with the version of the stored one.
function _M.serve()
    local method = ngx.req.get_method()
    if method == "POST" then
        return accept()
    elseif method ~= "GET" then
        return ngx.exit(405)
    end
    answer(200, { version = shared:get(VERSION) or "" })
end

return _M
