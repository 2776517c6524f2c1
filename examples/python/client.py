"""Calls Square, through a balancer or without one: ``python3 client.py xds:///numbers 3``."""

import sys

import grpc
import numbers_pb2
import numbers_pb2_grpc

target, value = sys.argv[1], float(sys.argv[2])
with grpc.insecure_channel(target) as channel:
    answer = numbers_pb2_grpc.NumbersStub(channel).Square(numbers_pb2.Number(value=value), timeout=10)
print(answer.value)
