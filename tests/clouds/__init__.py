"""The neighbours of a block-storage service in a cloud, for real: Keystone, Glance, RabbitMQ, Tempest.

Everything listens on loopback ports, keeps its files in one directory and ends with it.
"""
