{{- /*
nginx's servers, from the balancer's environment. NGINX_UPDATE is the way in which nginx gets the replicas:
dynamic          Lua has them. Nothing in this file comes from Consul, so it is rendered without Consul.
reload, restart  They are the servers of the upstream, and this file is rendered again at each change, without Lua.
*/ -}}
{{ $static := or (eq (env "NGINX_UPDATE") "reload") (eq (env "NGINX_UPDATE") "restart") -}}
{{ $envoy := eq (env "LB_ENGINE") "envoy" -}}
{{ $logs := ne (env "LB_ACCESS_LOG") "off" -}}
{{ $tls := ne (env "LB_TLS_CERTIFICATE") "" }}{{ $verifies := ne (env "LB_TLS_CLIENT_CA") "" -}}
{{ $replicas := and (not $static) (ne (env "LB_REPLICA_CA") "") -}}
{{ $crowds := ne (envOrDefault "LB_MAX_CONNECTIONS_PER_ADDRESS" "0" | parseInt) 0 -}}

{{- /* An IPv4 address as a number. */ -}}
{{ define "number" }}{{ $number := 0 -}}
{{ range split "." . }}{{ $number = parseInt . | add (multiply 256 $number) }}{{ end }}{{ $number }}{{ end -}}

{{ if $static -}}
{{ $octet := "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])" -}}
{{ $ipv4 := printf "%s([.]%s){3}" $octet $octet -}}
{{ $group := "[0-9A-Fa-f]{1,4}" -}}
{{ $some := printf "(%s(:%s){0,5})?" $group $group -}}
{{ $ipv6 := printf "^(%s(:%s){7}|%s::%s)$" $group $group $some $some -}}

{{- /*
The IPv4 networks of PEER_CIDR. Two addresses are in one network when their numbers, divided by its size and rounded
down, are equal. A network without a prefix is one address.
*/ -}}
{{ $networks := envOrDefault "PEER_CIDR" "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16" | replaceAll "," " " | split " " -}}
{{ range $networks }}{{ if regexMatch (printf "^%s(/(3[0-2]|[12]?[0-9]))?$" $ipv4) . -}}
{{ $parts := printf "%s/32" . | split "/" }}{{ $number := index $parts 0 | executeTemplate "number" | parseInt -}}
{{ $loopback := and (regexMatch "^127[.]" .) (not (regexMatch "/[0-7]$" .)) -}}
{{ $size := 1 }}{{ range loop (index $parts 1) 32 }}{{ $size = multiply 2 $size }}{{ end -}}
{{ scratch.MapSet "networks" . (sprig_dict "size" $size "quotient" (divide $size $number) "loopback" $loopback) -}}
{{ end }}{{ end -}}

{{- /*
Whoever reaches Consul can register anything, so only literal addresses and numbers in range go into the file. As in
balancer/addresses.py a replica's IPv4 address must be in PEER_CIDR, never link-local, loopback only in a network of
these; its port none of Consul's; both together not the balancer's own. Its IPv6 address must be its node's own, and
global or private. Services as in peers.tpl.
*/ -}}
{{ $consul := envOrDefault "CONSUL_PORT" "8500" | parseInt -}}
{{ $own := envOrDefault "LB_LISTEN" "0.0.0.0:5000" | regexReplaceAll "grpcs?://" "" | split " " -}}
{{ range services }}{{ if and (contains "grpc_server" .Tags) (regexMatch "^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$" .Name) -}}
{{ range service (printf "%s|passing,warning" .Name) }}{{ if contains "grpc_server" .Tags -}}
{{ $host := "" }}{{ $allowed := false -}}
{{ if regexMatch (printf "^%s$" $ipv4) .Address }}{{ $host = .Address -}}
{{ $number := executeTemplate "number" .Address | parseInt }}{{ $loopback := regexMatch "^127[.]" .Address -}}
{{ $never := regexMatch "^(0[.]0[.]0[.]0$|169[.]254[.]|22[4-9][.]|23[0-9][.])" .Address -}}
{{ range scratch.MapValues "networks" -}}
{{ if not (or $never (ne (divide .size $number) .quotient) (and $loopback (not .loopback))) }}{{ $allowed = true }}{{ end -}}
{{ end -}}
{{ else if and (regexMatch $ipv6 .Address) (not (regexMatch "(:.*){8}" .Address)) -}}
{{ $host = printf "[%s]" .Address -}}
{{ $allowed = and (eq .Address .NodeAddress) (regexMatch "(?i)^([23][0-9a-f]|f[cd])[0-9a-f]{2}:" .Address) }}{{ end -}}
{{ $weight := .Weights.Warning }}{{ if eq .Status "passing" }}{{ $weight = .Weights.Passing }}{{ end -}}
{{ $port := and (ge .Port 1) (le .Port 65535) (not (eq .Port 8300 8301 8302 8500 8501 8502 8503 8600 $consul)) -}}
{{ $loops := contains (printf "%s:%d" $host .Port) $own -}}
{{ $tls := eq (index .ServiceMeta "grpc_tls") "true" -}}
{{ if and $host $allowed $port (not $loops) (not $tls) (ge $weight 1) (le $weight 65535) -}}
{{ scratch.MapSetX "servers" (printf "%s:%d" $host .Port) (printf "%s:%d weight=%d" $host .Port $weight) -}}
{{ end }}{{ end }}{{ end }}{{ end }}{{ end -}}
{{ else -}}
include lua.conf;
{{ end -}}

{{ if $envoy -}}
# Envoy has the calls (LB_ENGINE); this nginx has the ports of status and metrics.
{{ else -}}
upstream grpc_replicas {
    {{- if not $static }}
    # Never used, because balancer_by_lua sets the peer of each try.
    server 0.0.0.1:1;
    balancer_by_lua_block { require("balancer").balance() }
    {{- else }}
    {{- range scratch.MapValues "servers" }}
    server {{ . }} max_fails=1 fail_timeout=1s;
    {{- else }}
    # nginx refuses an upstream without a server. With this one a call gets UNAVAILABLE at once.
    server 0.0.0.1:1 down;
    {{- end }}
    {{- end }}
    # A worker keeps idle connections to replicas, a few for each of 1,000 replicas. The number of calls does not end a
    # connection, because a new one has no advantage.
    keepalive 4096;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
}

{{ if not $static -}}
{{ if $replicas -}}
# The same for replicas with TLS, so that idle connections of the two kinds are apart.
upstream grpc_replicas_tls {
    server 0.0.0.1:1;
    balancer_by_lua_block { require("balancer").balance() }
    keepalive 4096;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
}

{{ end -}}
# Health and reflection for all applications (balancer/answers.py).
upstream answers {
    server unix:run/answers.sock;
    keepalive 64;
}
{{ end -}}
include maps.conf;
{{ if $logs -}}
include access_log.conf;
{{ if $static }}include grpc_code.conf;
{{ end -}}
{{ end -}}
limit_conn_zone $binary_remote_addr zone=address:8m;
limit_conn_status 429;
{{ $rate := envOrDefault "LB_MAX_CALLS_PER_SECOND_PER_ADDRESS" "0" | parseInt -}}
{{ if $rate -}}
limit_req_zone $binary_remote_addr zone=rate:8m rate={{ $rate }}r/s;
limit_req_status 429;
# Not a line for each refused call: metrics and the access log have them.
limit_req_log_level info;
{{ end -}}

server {
    {{- $calls := envOrDefault "LB_MAX_CALLS_PER_ADDRESS" "8192" | parseInt }}
    {{- range envOrDefault "LB_LISTEN" "0.0.0.0:5000" | split " " }}
    {{- $clear := or (not $tls) (regexMatch "^grpc://" .) }}
    listen {{ regexReplaceAll "^grpcs?://" "" . }} {{ if not $clear }}ssl {{ end }}http2 backlog=4096 so_keepalive=60s:10s:6;
    {{- end }}
    {{- if $tls }}
    include tls.conf;
    {{- if $static }}
    # A path with a variable is read at each handshake.
    ssl_certificate $lb_certificate;
    ssl_certificate_key $lb_certificate;
    {{- if $verifies }}
    ssl_client_certificate ../../run/client-ca.pem;
    ssl_verify_depth 4;
    ssl_verify_client optional;
    {{- end }}
    {{- else }}
    ssl_certificate ../../run/certificate.pem;
    ssl_certificate_key ../../run/certificate.pem;
    ssl_certificate_by_lua_block { {{ if $crowds }}require("crowd").refuse_connection() {{ end }}require("tls").handshake({{ $verifies }}) }
    {{- end }}
    {{- end }}
    # A caller can't set it.
    grpc_set_header x-client-certificate-subject {{ if $verifies }}$ssl_client_s_dn{{ else }}""{{ end }};

    # More calls on a connection than an address may have, because limit_conn refuses a call with a status, while a
    # client lets calls beyond its connection's streams wait.
    http2_max_concurrent_streams {{ $calls | add 128 }};
    limit_conn address {{ $calls }};
    {{- if $rate }}
    # Calls of one second may come at once.
    limit_req zone=rate burst={{ $rate }} nodelay;
    {{- end }}
    {{- range env "LB_ALLOW" | replaceAll "," " " | split " " }}{{ if . }}
    allow {{ . }};
    {{- end }}{{ end }}
    {{- if env "LB_ALLOW" }}
    deny all;
    {{- end }}
    include calls.conf;
    include grpc_answers.conf;

    {{- if $logs }}
    {{- if not $static }}
    # Lua sets it.
    set $lb_grpc_code "";
    {{- end }}
    # nginx-start links the file to the container's output. The buffer is as large as a pipe takes in one piece
    # (pipe(7), PIPE_BUF), because others write to it too.
    access_log access.log calls buffer=4k flush=1s;
    {{- end }}
    {{- if not $static }}

    # A call that its client resets while it waits in tcp.lua is not sent to a replica.
    lua_check_client_abort on;
    # The locations below and in grpc_answers.conf have them too.
    header_filter_by_lua_block { require("balancer").answered() }
    log_by_lua_block { require("balancer").finish() }

    # The services that every application has. Lua may change the upstream.
    set $lb_upstream grpc://grpc_replicas;
    {{- if $replicas }}

    # TLS with replicas. The certificate of a replica is of the CA and has the name of its application.
    set $lb_application "";
    include replica_tls.conf;
    {{- if ne (env "LB_REPLICA_CERTIFICATE") "" }}
    # A path with a variable is read for each connection.
    grpc_ssl_certificate $lb_replica_certificate;
    grpc_ssl_certificate_key $lb_replica_certificate;
    {{- end }}
    {{- end }}
    {{- range sprig_list "health.v1.Health" "reflection.v1.ServerReflection" "reflection.v1alpha.ServerReflection" }}
    location /grpc.{{ . }}/ {
        access_by_lua_block { {{ if $crowds }}require("crowd").refuse_call() {{ end }}{{ if $verifies }}require("tls").verify() {{ end }}require("balancer").accept_shared() }
        grpc_pass $lb_upstream;
    }
    {{- end }}
    {{- end }}

    location / {
        {{- if not $static }}
        access_by_lua_block { {{ if $crowds }}require("crowd").refuse_call() {{ end }}{{ if $verifies }}require("tls").verify() {{ end }}require("balancer").accept() }
        {{- else if $verifies }}
        if ($lb_certificate_missing) {
            return 495;
        }
        {{- end }}
        grpc_pass {{ if $replicas }}$lb_upstream{{ else }}grpc://grpc_replicas{{ end }};
    }

    location @unavailable {
        internal;
        {{- if not $static }}
        header_filter_by_lua_block { require("balancer").failed() }
        {{- end }}
        default_type application/grpc;
        add_header grpc-status $lb_answer_status always;
        add_header grpc-message $lb_answer_message always;
        return 200 "";
    }
}

{{ end -}}
{{ $status := envOrDefault "LB_STATUS_ADDRESS" "127.0.0.1" | trim "[]" -}}
{{ $port := envOrDefault "LB_STATUS_PORT" "8080" -}}
# The balancer's health and state, for its health check, for operators and for the control plane.
server {
    listen {{ if contains ":" $status }}[{{ $status }}]{{ else }}{{ $status }}{{ end }}:{{ $port }};
    include status.conf;
    {{- if $envoy }}
    # 200 once Envoy has its listeners.
    location = /health {
        limit_except GET { deny all; }
        # Envoy refuses nginx's default, 1.0.
        proxy_http_version 1.1;
        proxy_pass http://unix:run/envoy.sock:/ready;
    }
    {{- else }}
    location = /health {
        return 200 "serving\n";
    }
    {{- end }}
    {{- if not $static }}

    # The replicas from nginx.
    location = /state {
        default_type application/json;
        content_by_lua_block { require("balancer").state() }
    }

    # Takes the control plane's document. Only programs of the same host may send it: a connection to an address of its
    # own host comes from that address. A browser there sends requests of any website too, with the header Origin.
    location = /configuration {
        allow 127.0.0.0/8;
        allow ::1;
        {{- if regexMatch "^[0-9A-Fa-f.:]+$" $status }}
        allow {{ $status }};
        {{- end }}
        deny all;
        if ($http_origin) {
            return 403;
        }
        default_type application/json;
        # The body is never written to disk; its buffer has the size of Content-Length.
        client_max_body_size 64m;
        client_body_buffer_size 64m;
        content_by_lua_block { require("configuration").serve() }
    }
    {{- end }}
}

{{- $metrics := env "METRICS_PORT" }}
{{- if not (or $static (eq $metrics "") (eq $metrics "0")) }}

# For Prometheus; within the stack's own network.
server {
    {{- $bind := envOrDefault "BIND_ADDRESS" "0.0.0.0" | envOrDefault "METRICS_ADDRESS" }}
    listen {{ if contains ":" $bind }}[{{ $bind }}]{{ else }}{{ $bind }}{{ end }}:{{ $metrics }};

    location = /metrics {
        {{- if $envoy }}
        # With Envoy's own.
        content_by_lua_block {
            local envoy = ngx.location.capture("/envoy")
            require("balancer").metrics()
            ngx.print(envoy.status == 200 and not envoy.truncated and envoy.body or "")
        }
        {{- else }}
        content_by_lua_block { require("balancer").metrics() }
        {{- end }}
    }

    {{- if $envoy }}

    location = /envoy {
        internal;
        proxy_http_version 1.1;
        # Buffers that are full would wait for a reader, which Lua is not before the end.
        proxy_buffering off;
        # Text, also if the caller would take another form. An Envoy that hangs does not hide the other metrics.
        proxy_pass_request_headers off;
        proxy_connect_timeout 1s;
        proxy_read_timeout 3s;
        proxy_pass http://unix:run/envoy.sock:/stats/prometheus?usedonly;
    }
    {{- end }}

    # For `status` on another host.
    location = /state {
        default_type application/json;
        content_by_lua_block { require("balancer").state() }
    }
}
{{- end }}
