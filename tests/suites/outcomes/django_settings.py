"""Settings for Django's own tests: two databases on the server that libpq's variables name."""

import os


def database(name):
    return {"ENGINE": "django.db.backends.postgresql", "NAME": name, "HOST": os.environ["PGHOST"],
            "PORT": os.environ["PGPORT"], "USER": os.environ["PGUSER"], "PASSWORD": os.environ["PGPASSWORD"]}


DATABASES = {"default": database("django"), "other": database("django2")}
# As in Django's own example, tests/test_sqlite.py.
SECRET_KEY = "django_tests_secret_key"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = False
TEST_RUNNER = "django_outcomes.Runner"
