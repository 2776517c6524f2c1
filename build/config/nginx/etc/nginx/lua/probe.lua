-- What a replica says when it is asked from outside of any call: whether it is there, answers, and is who it was.

local _M = {}

-- The client's connection preface (RFC 9113, section 3.4): the magic and an empty SETTINGS frame.
local PREFACE = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" .. "\0\0\0\4\0\0\0\0\0"
local FRAME_HEADER_BYTES, MAX_FRAME_BYTES, MAX_FRAMES = 9, 16384, 16
local DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY = 0, 1, 3, 4, 7
local NO_HTTP2 = "no HTTP/2"
local END_STREAM, END_HEADERS = 1, 4
-- grpc.health.v1.HealthCheckResponse behind gRPC's five bytes. Any other is somebody else's: Python's own health
-- service sends an empty one with NOT_FOUND for a name that it doesn't know.
local STATUS = { ["\0\0\0\0\2\8\1"] = "serving", ["\0\0\0\0\2\8\2"] = "not serving" }

local function frame(kind, flags, payload)
    return string.char(0, math.floor(#payload / 256), #payload % 256, kind, flags, 0, 0, 0, 1) .. payload
end

-- A string of less than 127 bytes as HPACK has it, without Huffman's code (RFC 7541, section 5.2).
local function text(value)
    return string.char(#value) .. value
end

-- grpc.health.v1.Health/Check of a service, one HEADERS and one DATA frame. Fields by their place in HPACK's static
-- table (RFC 7541, appendix A), none put into the dynamic one.
local function health_check(service)
    local fields = {
        "\131", -- :method: POST
        "\134", -- :scheme: http
        "\4", text("/grpc.health.v1.Health/Check"), -- :path
        "\1", text("replica"), -- :authority
        "\15\16", text("application/grpc"), -- content-type
        "\0", text("te"), text("trailers"),
    }
    local message = service == "" and "" or "\10" .. text(service)
    return frame(HEADERS, END_HEADERS, table.concat(fields))
        .. frame(DATA, END_STREAM, "\0\0\0\0" .. string.char(#message) .. message)
end

local function read_frame(socket)
    local header, err = socket:receive(FRAME_HEADER_BYTES)
    if not header then
        return nil, err
    end
    local high, middle, low, kind, flags, a, b, c, stream = header:byte(1, 9)
    local length = high * 65536 + middle * 256 + low
    if length > MAX_FRAME_BYTES then
        return nil, NO_HTTP2
    end
    local payload = ""
    if length > 0 then
        payload, err = socket:receive(length)
        if not payload then
            return nil, err
        end
    end
    return { kind = kind, flags = flags, stream = ((a % 128 * 256 + b) * 256 + c) * 256 + stream, payload = payload }
end

local function read_answer(socket, service)
    local first, err = read_frame(socket)
    if not first and err ~= NO_HTTP2 then
        return err == "timeout" and "silent" or "refused"
    elseif not first or first.kind ~= SETTINGS then
        return "foreign"
    end
    if service == "" then
        return "serving"
    end
    for _ = 1, MAX_FRAMES do
        local found
        found, err = read_frame(socket)
        if not found then
            return err == "timeout" and "silent" or "refused"
        elseif found.kind == DATA and found.stream == 1 then
            return STATUS[found.payload] or "foreign"
        elseif found.kind == HEADERS and found.stream == 1 and found.flags % 2 == END_STREAM then
            -- An answer without a message: NOT_FOUND or UNIMPLEMENTED. It is no replica of this service.
            return "foreign"
        elseif found.kind == GOAWAY or found.kind == RST_STREAM and found.stream == 1 then
            return "not serving"
        end
    end
    return "foreign"
end

-- Asks a peer on a connection of its own.
--   serving      it answers; with a health service's name, that it is SERVING
--   not serving  it answers that it is not
--   refused      nobody is there
--   silent       no answer in time: a stopped process (its kernel accepts connections), or one with too much to do
--   foreign      somebody else is there: no HTTP/2, or a health service that doesn't know this name
function _M.ask(peer, timeout_ms)
    local socket = ngx.socket.tcp()
    socket:settimeouts(timeout_ms, timeout_ms, timeout_ms)
    local address = peer.address:find(":", 1, true) and "[" .. peer.address .. "]" or peer.address
    local ok, err = socket:connect(address, peer.port)
    if not ok then
        return err == "timeout" and "silent" or "refused"
    end
    local request = peer.health == "" and PREFACE or PREFACE .. health_check(peer.health)
    local answer = socket:send(request) and read_answer(socket, peer.health) or "refused"
    socket:close()
    return answer
end

return _M
