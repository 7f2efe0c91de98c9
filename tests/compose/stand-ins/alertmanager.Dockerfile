# Stands in for prom/alertmanager: Debian's program, with the entry point, the user and the folders of that image.
FROM localhost/stand-in/debian
RUN apt-get install -y -qq --no-install-recommends prometheus-alertmanager >/dev/null \
 && rm -rf /etc/alertmanager \
 && ln -s prometheus-alertmanager /bin/alertmanager \
 && install -d -o nobody -g nogroup /etc/alertmanager /alertmanager
USER nobody
VOLUME /alertmanager
WORKDIR /alertmanager
ENTRYPOINT ["/bin/alertmanager"]
CMD ["--config.file=/etc/alertmanager/alertmanager.yml", "--storage.path=/alertmanager"]
