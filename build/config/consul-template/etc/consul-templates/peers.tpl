{{- /*
The replicas that pass their checks, a JSON array a line: application, address, port, weight, the address of its Consul
node, metadata. JSON's notation keeps every field a field, whatever anybody has registered.
Every service with the tag grpc_server is one. Service names that consul-template's own query syntax can't carry are left
out here; all else is checked by balancer/registration.py.
*/ -}}
{{ range services }}{{ if and (contains "grpc_server" .Tags) (regexMatch "^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$" .Name) -}}
{{ range service (printf "%s|passing,warning" .Name) }}{{ if contains "grpc_server" .Tags -}}
{{ $weight := .Weights.Warning }}{{ if eq .Status "passing" }}{{ $weight = .Weights.Passing }}{{ end -}}
{{ sprig_list .Name .Address .Port $weight .NodeAddress .ServiceMeta | toJSON }}
{{ end }}{{ end }}{{ end }}{{ end -}}
# end
