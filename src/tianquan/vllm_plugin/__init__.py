"""Megrez-3B-Omni inside vLLM: many users, several GPUs, clusters.

The language model is vLLM's own Llama, sharded and cached as vLLM does it; pictures and sound are prepared by this
package's processor, and encoded by its model definition on the torch backend. No code comes from the checkpoint's
folder. Written for one version of vLLM (`registration.py`), for plugins live on its inner interfaces.
"""
