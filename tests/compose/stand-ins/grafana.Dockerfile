# Stands in for grafana/grafana, without Grafana: it has that image's user, folders and password file, and reports the
# mounted files on its port. So it tests the wiring, and not the look of a dashboard.
FROM localhost/stand-in/python
RUN install -d -o 472 -g 0 -m 777 /var/lib/grafana /etc/grafana/provisioning
COPY --chmod=755 grafana.sh /run.sh
COPY grafana.py /usr/share/grafana/grafana.py
USER 472
ENTRYPOINT ["/run.sh"]
