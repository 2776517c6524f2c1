"""Changes the weight of the replica in the same container, by the API of the Consul agent there.

docker-compose exec -T SERVICE python3 - WEIGHT <examples/weigh.py
"""

import os
import sys

import requests

weight = int(sys.argv[1])
agent = f"http://127.0.0.1:{os.environ['CONSUL_PORT']}/v1/agent/service"
name, port = os.environ["APP_NAME"], os.environ["APP_PORT"]
answer = requests.get(f"{agent}/{name}-{os.environ['HOSTNAME']}-{port}", timeout=5)
answer.raise_for_status()
old = answer.json()
# To register an ID again replaces everything except its check.
body = {key: old[key] for key in ("ID", "Port", "Address", "Tags", "Meta")}
body |= {"Name": old["Service"], "Weights": {**old["Weights"], "Passing": weight}}
requests.put(f"{agent}/register", json=body, timeout=5).raise_for_status()
print(f"{old['ID']}: weight {old['Weights']['Passing']}, now {weight}")
