"""An index in object storage: read through a cache of this machine, published by conditional puts.

index.remote.remote_index is what the rest of the product sees of it.
"""
