"""Servers and clients of gRPC's own libraries, each with its default options, and their protocol.

All servers have the service ``foreign.Echo``; all clients carry out the same cases. A message is JSON in UTF-8, so that
no language needs generated code. Values of metadata whose names end in ``-bin`` are base64 in it.

A request:

``payload``    a text, or ``size``: so many x instead; an answer has it, or its length where it has more than 1,000.
``initial``, ``trailing``  metadata that the server sends: a list of names and values. Of a stream's requests the first
               one's count.
``status``     code and message with which the server ends the call, after its answers.
``count``      answers of ServerStream, each after ``pause_ms``. Unary takes ``pause_ms`` too.
``end_after``  requests after which Bidi ends although the client may still send.

An answer: ``payload``, ``metadata`` (the caller's), ``index``.

A case, of which a client gets a list as JSON on its standard input: ``method``, ``metadata``, ``requests``, and where
they matter ``timeout_ms``, ``cancel_after`` (answers), ``gzip``, ``at_once`` (so many such calls together). For each
call a client prints a line of JSON: ``status`` (code and message), ``initial``, ``trailing``, ``answers``.

What greets is given targets of protos.Ping, also those of xDS, and calls each 50 times a second until its input ends.
For each line of input and at the end it prints the calls of each target since the last time, by the replica that
answered or the error: ``{"xds:///hello_server": {"127.0.0.1:7777": 50}}``. A replica is its address, and in Python,
where a call has no address, its name.

``FOREIGN_OPTIONS``, an object of numbers by the names that gRPC's C core has for them without ``grpc.``: what else than
its default a server or a client has. ``max_connection_age_ms``, ``max_connection_age_grace_ms``,
``max_connection_idle_ms`` and ``max_concurrent_streams`` of the servers in Go and Python, ``keepalive_time_ms`` of the
clients in Node.js and Python.
"""
