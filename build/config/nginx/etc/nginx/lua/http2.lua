-- Whether a peer speaks HTTP/2, found out from outside of any call.

local _M = {}

-- The client's connection preface (RFC 9113, section 3.4): the magic and an empty SETTINGS frame.
local PREFACE = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" .. "\0\0\0\4\0\0\0\0\0"
local FRAME_HEADER_BYTES = 9
local SETTINGS = 4

-- Connects and waits for the peer's own preface, a SETTINGS frame. A stopped process accepts a connection (its
-- kernel does) but sends none.
function _M.answers(address, port, timeout_ms)
    local socket = ngx.socket.tcp()
    socket:settimeouts(timeout_ms, timeout_ms, timeout_ms)
    if address:find(":", 1, true) then
        address = "[" .. address .. "]"
    end
    if not socket:connect(address, port) then
        return false
    end
    local frame = socket:send(PREFACE) and socket:receive(FRAME_HEADER_BYTES)
    socket:close()
    return frame ~= nil and frame ~= false and frame:byte(4) == SETTINGS
end

return _M
