# clipedit for machines without a GPU: not as root, on a root file system that may be read-only.
#   docker build -t clipedit .
#   docker run --rm --read-only --tmpfs /tmp -v clipedit-cache:/cache -v "$PWD":/work --user "$(id -u)" clipedit demo
FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/clipedit
ENV PATH=/opt/clipedit/bin:$PATH
# PyTorch's own index of CPU wheels: those of the package index bring CUDA along, several gigabytes.
ARG TORCH=2.13.0
ARG TORCHVISION=0.28.0
RUN pip install --index-url https://download.pytorch.org/whl/cpu "torch==${TORCH}" "torchvision==${TORCHVISION}"
COPY requirements.lock /build/
# The lock is whole: what is not in it, with its hash, is not installed.
RUN pip install --no-deps --require-hashes -r /build/requirements.lock
COPY . /build/clipedit
RUN pip install --no-deps /build/clipedit

FROM python:3.11-slim-bookworm
# Any user may write there: with `--user`, what lands in a mounted folder belongs to who runs it.
RUN install -d -m 1777 /cache /work
COPY --from=build /opt/clipedit /opt/clipedit
# All that is written goes to the volume and to the working directory: fetched models, embeddings of texts.
ENV PATH=/opt/clipedit/bin:$PATH \
    HOME=/cache \
    HF_HOME=/cache/huggingface \
    TORCH_HOME=/cache/torch \
    CLIPEDIT_CACHE=/cache/clipedit \
    PYTHONDONTWRITEBYTECODE=1
USER 10001
WORKDIR /work
VOLUME ["/cache"]
ENTRYPOINT ["clipedit"]
CMD ["--help"]
