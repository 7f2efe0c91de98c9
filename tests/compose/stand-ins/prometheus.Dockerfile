# Stands in for prom/prometheus: Debian's program, with the entry point, the user and the folders of that image.
FROM localhost/stand-in/debian
RUN apt-get install -y -qq --no-install-recommends prometheus >/dev/null \
 && rm -rf /etc/prometheus \
 && install -d -o nobody -g nogroup /etc/prometheus /prometheus
USER nobody
VOLUME /prometheus
WORKDIR /prometheus
ENTRYPOINT ["/bin/prometheus"]
CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
