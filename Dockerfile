# The image of a cluster's nodes, for GPUs: `docker build -t REGISTRY/caprl_ray:0.5.0 -f Dockerfile release`.
# docs/clusters.md says how `release` is made: the wheels of requirements/gpu.lock, and of this package.
FROM rayproject/ray:2.60.0-py311-gpu
RUN --mount=type=bind,target=/release \
    pip install --no-index --find-links /release --no-deps --require-hashes -r /release/gpu.lock && \
    pip install --no-index --find-links /release --no-deps caprl_ray==0.5.0
