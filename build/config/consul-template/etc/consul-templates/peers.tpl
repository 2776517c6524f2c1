{{- /*
The replicas that pass their checks, one a line, every field in JSON's notation, so that nothing that anybody
registers makes another field or line: application, address, port, weight, its node's address, gRPC services (a long
list goes on in grpc_services_2 to 8), the name that its health service knows.
Every service with the tag grpc_server is one. Service names that consul-template's own query syntax can't carry
are left out here; all else is checked by membership.lua.
*/ -}}
{{ range services }}{{ if and (contains "grpc_server" .Tags) (regexMatch "^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$" .Name) -}}
{{ range service (printf "%s|passing,warning" .Name) }}{{ if contains "grpc_server" .Tags -}}
{{ $meta := .ServiceMeta }}{{ $services := index $meta "grpc_services" }}{{ range loop 2 9 }}{{ with index $meta (printf "grpc_services_%d" .) }}{{ $services = printf "%s,%s" $services . }}{{ end }}{{ end -}}
{{ .Name | toJSON }}	{{ .Address | toJSON }}	{{ .Port | toJSON }}	{{ if eq .Status "passing" }}{{ .Weights.Passing | toJSON }}{{ else }}{{ .Weights.Warning | toJSON }}{{ end }}	{{ .NodeAddress | toJSON }}	{{ $services | toJSON }}	{{ index .ServiceMeta "grpc_health" | toJSON }}
{{ end }}{{ end }}{{ end }}{{ end -}}
# end
