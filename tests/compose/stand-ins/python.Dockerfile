# Stands in for the image of Python: Debian's own. The context holds this machine's certificates and pip.conf.
FROM localhost/stand-in/debian
RUN apt-get install -y -qq --no-install-recommends python3 python3-pip python3-venv wget >/dev/null \
 && rm -f /usr/lib/python3*/EXTERNALLY-MANAGED
COPY certificates/ /usr/local/share/ca-certificates/
COPY pip.conf /etc/pip.conf
RUN update-ca-certificates >/dev/null 2>&1
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    PIP_CERT=/etc/ssl/certs/ca-certificates.crt \
    REQUESTS_CA_BUNDLE=/etc/ssl/certs/ca-certificates.crt
