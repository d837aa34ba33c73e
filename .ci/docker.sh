# Sourced by .ci/run: a Docker engine from Debian, and a plain Python base image made locally.
# Sets INFLESS_TEST_BASE_IMAGE; returns non-zero where something is not possible.
base_image=infless-test/python:3.11
log=$(mktemp -d)

if ! docker info > /dev/null 2>&1; then
    if ! command -v dockerd > /dev/null; then
        { apt-get update && apt-get install -y --no-install-recommends docker.io; } > "$log/apt" 2>&1 \
            || { tail -n 5 "$log/apt"; return 1; }
    fi
    setsid nohup dockerd > "$log/dockerd" 2>&1 < /dev/null &
    for _ in $(seq 60); do docker info > /dev/null 2>&1 && break; sleep 0.5; done
    docker info > /dev/null 2>&1 || { tail -n 5 "$log/dockerd"; return 1; }
fi

if ! docker image inspect "$base_image" > /dev/null 2>&1; then
    command -v debootstrap > /dev/null || apt-get install -y --no-install-recommends debootstrap > "$log/apt" 2>&1 \
        || { tail -n 5 "$log/apt"; return 1; }
    debootstrap --variant=minbase --include=python3,python3-pip,ca-certificates --exclude=gcc bookworm "$log/root" \
        http://deb.debian.org/debian > "$log/debootstrap" 2>&1 || { tail -n 5 "$log/debootstrap"; return 1; }
    ln -sf python3 "$log/root/usr/bin/python"
    rm -f "$log"/root/usr/lib/python3*/EXTERNALLY-MANAGED
    # The image trusts whom this host trusts, so that pip works behind the same network.
    cp /etc/ssl/certs/ca-certificates.crt "$log/root/etc/ssl/certs/ca-certificates.crt"
    printf '[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n' > "$log/root/etc/pip.conf"
    tar -C "$log/root" --numeric-owner -c . | docker import -c 'ENV LANG=C.UTF-8' \
        -c 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' - "$base_image" > /dev/null || return 1
    rm -rf "$log/root"
fi
export INFLESS_TEST_BASE_IMAGE=$base_image
