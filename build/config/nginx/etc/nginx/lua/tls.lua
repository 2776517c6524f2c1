-- TLS with callers: the certificate of new connections, and the check of the caller's. The control plane writes the
-- files (balancer/certificates.py), and replaces them when certificates are renewed.

local clock = require("clock")
local ssl = require("ngx.ssl")

local _M = {}

local RUN = ngx.config.prefix() .. "../"
-- A worker reads the files again, at a handshake, after this time.
local LOOK_SECONDS = 1
-- The most certificates between a caller's and the CA's.
local DEPTH = 4

local function parse_pair(text)
    local chain, err = ssl.parse_pem_cert(text)
    if not chain then
        return nil, err
    end
    local key
    key, err = ssl.parse_pem_priv_key(text)
    return key and { chain = chain, key = key }, err
end

local pair = { path = RUN .. "certificate.pem", parse = parse_pair }
local authority = { path = RUN .. "client-ca.pem", parse = ssl.parse_pem_cert }

-- Returns the parsed content of a file, or the last one if the file cannot be read or parsed.
local function read(file)
    local now = clock.now()
    if file.looked and now < file.looked + LOOK_SECONDS then
        return file.value
    end
    file.looked = now
    local handle = io.open(file.path, "rb")
    local text = handle and handle:read("*a")
    if handle then
        handle:close()
    end
    if text and text ~= file.text then
        local value, err = file.parse(text)
        if value then
            file.text, file.value = text, value
        else
            ngx.log(ngx.ERR, file.path, ": ", err)
        end
    end
    return file.value
end

-- For ssl_certificate_by_lua: sets the certificate of a new connection; with `verifies`, asks for the caller's.
function _M.handshake(verifies)
    local mine = read(pair)
    if not mine then
        return -- nginx's own ssl_certificate, which is the same file at nginx's start.
    end
    local ok, err = ssl.clear_certs()
    if ok then
        ok, err = ssl.set_cert(mine.chain)
    end
    if ok then
        ok, err = ssl.set_priv_key(mine.key)
    end
    if ok and verifies then
        local issuers = read(authority)
        if not issuers then
            ok, err = nil, "no CA of callers"
        else
            ok, err = ssl.verify_client(issuers, DEPTH)
        end
    end
    if not ok then
        ngx.log(ngx.ERR, "TLS: ", err)
        return ngx.exit(ngx.ERROR)
    end
end

-- For access_by_lua: refuses a call of a TLS connection without a certificate of the CA.
function _M.verify()
    local result = ngx.var.ssl_client_verify
    if result == "SUCCESS" or ngx.var.https ~= "on" then
        return
    end
    ngx.var.lb_grpc_status = 16
    local reason = result and result:match("^FAILED:(.+)")
    ngx.var.lb_grpc_message = reason and "the client certificate is not accepted: " .. reason
        or "a client certificate is required"
    return ngx.exit(503)
end

return _M
