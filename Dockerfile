# The image of a cluster's nodes, for GPUs: `docker build -t REGISTRY/caprl_ray:0.6.0 -f Dockerfile release`.
# docs/clusters.md says how `release` is made: the wheels of requirements/gpu.lock, the lock, and this package's wheel.
# That folder is the whole context, so nothing else of a checkout can get into the image. The build needs BuildKit.

# Only Python, gcc (for Triton) and CUDA's compiler (for FlashInfer) are used of this image, so its CUDA must be that of
# the lock. `-gpu` would be CUDA 12.
FROM rayproject/ray:2.60.0-py311-cu130

# The user of the image is `ray`, with the id 1000. The packages have an environment of their own, as on AWS nodes: what
# comes with the image is neither locked nor checked by hash.
ENV PATH=/home/ray/venv/bin:$PATH RAY_USAGE_STATS_ENABLED=0
RUN --mount=type=bind,target=/release \
    python -m venv /home/ray/venv && \
    pip install --no-cache-dir --no-index --find-links /release --no-deps --require-hashes -r /release/gpu.lock && \
    pip install --no-cache-dir --no-index --find-links /release --no-deps caprl_ray==0.6.0

# An image that cannot start an engine fails here and not on a node.
RUN caprl-ray --version && gcc --version && python -c "import ray.data, torch, vllm"
