# Stands in for grafana/grafana, and is no Grafana: it has the user, the folders and the way to the password of that
# image, and says on its port what it has found. So it proves the wiring, and nothing of how a dashboard looks.
FROM localhost/stand-in/python
RUN install -d -o 472 -g 0 -m 777 /var/lib/grafana /etc/grafana/provisioning
COPY --chmod=755 grafana.sh /run.sh
COPY grafana.py /usr/share/grafana/grafana.py
USER 472
ENTRYPOINT ["/run.sh"]
