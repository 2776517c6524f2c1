{{- /*
The balancer's listener and how calls go on. Rendered when the balancer starts, from its environment. Nothing of it
comes from Consul: which replicas there are is peers.tpl's, and Lua reads it without a reload.
*/ -}}
upstream grpc_replicas {
    # Never used: balancer_by_lua names the peer of each try.
    server 0.0.0.1:1;
    balancer_by_lua_block { require("balancer").balance() }
    # Idle connections to replicas that a worker keeps, some for each of 1,000 replicas, and how long. A replica's
    # connection is not ended for its count of calls: an end costs a new connection and brings nothing.
    keepalive 4096;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
}

{{ $logs := ne (env "LB_ACCESS_LOG") "off" -}}
{{ if $logs -}}
# A call's ID is the caller's, if that is one, or made here.
map $http_x_request_id $lb_request_id {
    "~^[\x21-\x7e]{1,128}$" $http_x_request_id;
    default $request_id;
}
# What callers may have made longer than a line, or of bytes that are no text, is not repeated.
map $uri $lb_method {
    "~^[\x21-\x7e]{1,200}$" $uri;
    default other;
}
map $http_traceparent $lb_traceparent {
    "~^[0-9a-f-]{1,128}$" $http_traceparent;
    default "";
}
log_format calls escape=json 'nginx | {"time":"$time_iso8601","method":"$lb_method","grpc_status":"$lb_grpc_code",'
    '"seconds":$request_time,"replica":"$upstream_addr","request_bytes":$request_length,"response_bytes":$bytes_sent,'
    '"client":"$remote_addr","request_id":"$lb_request_id","traceparent":"$lb_traceparent"}';
{{ end -}}
limit_conn_zone $binary_remote_addr zone=address:8m;
limit_conn_status 429;

server {
    {{- range envOrDefault "LB_LISTEN" "0.0.0.0:5000" | split " " }}
    listen {{ . }} http2 backlog=4096 so_keepalive=60s:10s:6;
    {{- end }}

    # Connections live until the client or an operator ends them: nginx's default ends one after 1,000 calls, and
    # calls that cross the GOAWAY are lost.
    keepalive_requests 1000000000;
    keepalive_timeout 24h;
    http2_max_concurrent_streams 128;
    client_header_timeout 10s;
    client_body_timeout 24h;
    # Cuts only clients that stop reading.
    send_timeout 5m;
    client_max_body_size 0;
    client_body_buffer_size 64k;
    # Metadata: one field of up to 32 KiB, gRPC's usual bound for all of it together is 8 to 16 KiB.
    large_client_header_buffers 4 32k;
    limit_conn address {{ envOrDefault "LB_MAX_CALLS_PER_ADDRESS" "8192" }};

    {{- if $logs }}
    set $lb_grpc_code "";
    # nginx-start makes it the container's output. No more at once than a pipe takes in one piece (pipe(7), PIPE_BUF),
    # for others write to it too.
    access_log access.log calls buffer=4k flush=1s;
    {{- end }}

    # A call that its client resets while it waits (tcp.lua) goes nowhere.
    lua_check_client_abort on;
    # For the locations below as well, where a call that failed ends.
    header_filter_by_lua_block { require("balancer").answered() }
    log_by_lua_block { require("balancer").finish() }

    # A path is the name of a method, all printable ASCII. One that is not, and no UTF-8 either, ends a server of
    # grpcio's asyncio API for good (seen with 1.85): one call a replica, and nobody serves any more.
    if ($request_uri ~ "[^\x21-\x7e]") {
        return 404;
    }
    error_page 404 = @unimplemented;

    # What a call ends with that reaches no replica; the balancer knows better where no application has the service.
    set $lb_grpc_status 14;
    set $lb_grpc_message "no replica could be reached";

    location / {
        access_by_lua_block { require("balancer").accept() }
        grpc_pass grpc://grpc_replicas;
        grpc_set_header Host $http_host;
        {{- if $logs }}
        grpc_set_header x-request-id $lb_request_id;
        {{- end }}
        grpc_buffer_size 64k;
        grpc_connect_timeout 500ms;
        grpc_read_timeout 24h;
        grpc_send_timeout 24h;
        grpc_socket_keepalive on;
        # Only tries that reached nobody are repeated; nginx never sends a call again that it has sent.
        grpc_next_upstream error timeout;
        grpc_next_upstream_timeout 900ms;

        # 500 is what nginx makes of a balancer that names no peer.
        error_page 500 502 503 504 = @unavailable;
        error_page 429 = @exhausted;
    }

    # Trailers-only answers (gRPC over HTTP/2, "Responses"): HTTP status 200, gRPC's content type and one HEADERS frame
    # that ends the stream, which nginx sends for an empty body of known length. A 204, which is often seen in this
    # place, is UNKNOWN to clients that look at the HTTP status first.
    location @unavailable {
        internal;
        default_type application/grpc;
        add_header grpc-status $lb_grpc_status always;
        add_header grpc-message $lb_grpc_message always;
        return 200 "";
    }

    location @unimplemented {
        internal;
        default_type application/grpc;
        add_header grpc-status 12 always;
        add_header grpc-message "no such method" always;
        return 200 "";
    }

    location @exhausted {
        internal;
        default_type application/grpc;
        add_header grpc-status 8 always;
        add_header grpc-message "too many calls at once from this address" always;
        return 200 "";
    }
}

# The balancer's own health and view, for its checks and for people.
server {
    listen {{ envOrDefault "LB_STATUS_ADDRESS" "127.0.0.1" }}:{{ envOrDefault "LB_STATUS_PORT" "8080" }};
    default_type text/plain;

    location = /health {
        return 200 "serving\n";
    }

    location = /state {
        default_type application/json;
        content_by_lua_block { require("balancer").state() }
    }

    location = /configuration {
        default_type application/json;
        client_max_body_size 32m;
        client_body_buffer_size 32m;
        content_by_lua_block { require("configuration").serve() }
    }

    location = /replicas {
        proxy_pass http://unix:run/balancer.sock:/replicas;
    }
}

{{- $port := env "METRICS_PORT" }}
{{- if and (ne $port "") (ne $port "0") }}

# For Prometheus; within the stack's own network.
server {
    listen {{ envOrDefault "BIND_ADDRESS" "0.0.0.0" }}:{{ $port }};

    location = /metrics {
        content_by_lua_block { require("balancer").metrics() }
    }
}
{{- end }}
